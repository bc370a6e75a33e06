"""The runs that Model Doctor learns from.

python -m benchmarks.doctor experience FOLDER     trains small models, alters and measures each, writes FOLDER/*.jsonl
python -m benchmarks.doctor table FOLDER          writes hemorrhage/analyze/experience.csv from these, and from reports/

Every number comes from the bench's own steps, in one process: base, text, calibrate, compress, reference, and the
divergence of the evaluate step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tests import tiny_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from hemorrhage.analyze.doctor import cases, predictor
from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.checks.fidelity import LAYERS
from hemorrhage.data.texts import embedded
from hemorrhage.data.texts.__main__ import prepare as prepare_text
from hemorrhage.evaluate.language import corpus_damage, stored_head, windows_per_batch
from hemorrhage.evaluate.reference import Spec, reference
from hemorrhage.models.__main__ import prepare as prepare_model
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.study import params as config

CORPORA = ("prose", "code")
WINDOW, WINDOWS = 128, 12
CALIBRATION = {"samples": 32, "length": 128, "seed": 0, "max_hessian_gb": 1}
BATCH, LENGTH = 8, 128
STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"


@dataclass(frozen=True)
class Shape:
    """A small model: width, blocks, steps of training, the corpus it learns, the seed."""

    name: str
    width: int
    blocks: int
    steps: int
    corpus: str = "prose"
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of training."""
        return self.steps * BATCH * (LENGTH - 1)


SHAPES = (
    Shape("tiny-64x5-150", 64, 5, 150),
    Shape("tiny-32x3-100", 32, 3, 100),
    Shape("tiny-64x4-500-code", 64, 4, 500, "code"),
    Shape("tiny-64x5-600", 64, 5, 600),
    Shape("tiny-96x6-400", 96, 6, 400),
    Shape("tiny-32x4-400", 32, 4, 400),
)

GROUP = "group"
"""Stands for a group size that divides the model's widths."""

SWEEPS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "bits": [8, 5, 4, 3, 2], "group_size": GROUP},
    "rtn_channel": {"method": "rtn", "bits": [6, 4, 3], "group_size": "channel"},
    "gptq": {"method": "gptq", "bits": [4, 3, 2], "group_size": GROUP},
    "gptq_channel": {"method": "gptq", "bits": [3], "group_size": "channel"},
    "awq": {"method": "awq", "bits": [4, 3], "group_size": GROUP},
    "quip": {"method": "rotation", "transform": "quip", "rounding": "gptq", "bits": [3], "group_size": "channel"},
    "nf4": {"method": "codebook", "type": ["nf4"], "block_size": 64},
    "w8a8": {"method": "activations", "bits": 8, "activations": ["token", "tensor"], "smooth": 0.5},
    "kv_cache": {"method": "kv_cache", "bits": [4, 2], "group_size": 8},
    "magnitude": {"method": "magnitude", "sparsity": [0.3, 0.5, 0.7, "2:4"]},
    "wanda": {"method": "wanda", "sparsity": [0.3, 0.5, 0.7, "2:4"]},
    "sparsegpt": {"method": "sparsegpt", "sparsity": [0.3, 0.5, 0.7, "2:4"]},
    "slicegpt": {"method": "slicegpt", "removed": [0.25]},
    "shortgpt": {"method": "depth", "order": "influence", "removed": [0.2, 0.4]},
    "random_depth": {"method": "depth", "order": "random", "removed": [0.2, 0.4]},
    "svd": {"method": "svd", "removed": [0.1, 0.3]},
    "llama_pro": {"method": "llama_pro", "added": [0.2]},
    "duplication": {"method": "duplication", "added": [0.2]},
    "expert_split": {"method": "expert_split", "experts": 4, "top_k": [3], "router": "random"},
    "wanda_gptq": {"method": "gptq", "on": ["wanda-0.5"], "bits": [4], "group_size": GROUP, "keep_zeros": True},
}


def train(shape: Shape, out: Path, texts: list[str] | None = None, steps: int | None = None) -> Path:
    """Train a Llama of ``shape`` on ``texts`` (the calibration split of its corpus) for ``steps``, as a folder."""
    vocabulary = embedded.documents("prose")["calibration"] + embedded.documents("code")["calibration"]
    tokenizer = tiny_model.train_tokenizer(vocabulary)
    out.mkdir(parents=True)
    tiny_model.save_tokenizer(tokenizer, out)
    joined = embedded.JOIN.join(texts or embedded.documents(shape.corpus)["calibration"])
    tokens = torch.tensor(tokenizer.encode(joined, add_special_tokens=False).ids)
    made = LlamaConfig(
        vocab_size=tiny_model.VOCABULARY, hidden_size=shape.width, intermediate_size=3 * shape.width,
        num_hidden_layers=shape.blocks, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
        max_position_embeddings=tiny_model.CONTEXT, initializer_range=0.05, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = LlamaForCausalLM(made)
    tiny_model.train(model, tokens, steps or shape.steps, batch=BATCH, length=LENGTH)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(out)
    return out


class Bench:
    """The steps of the bench for one model, in a folder."""

    def __init__(self, source: Path, folder: Path, calibration: str = "prose") -> None:
        """``source``: a Hugging Face folder; ``calibration``: the corpus to calibrate on."""
        self.folder = folder
        self.base = folder / "base"
        prepare_model({"source": "path", "path": str(source)}, self.base)
        needs = {"calibration": 1, "evaluation": WINDOW * WINDOWS}
        for corpus in CORPORA:
            prepare_text(corpus, self.base, {"source": "embedded"}, needs, folder / corpus)
        self.calibration = folder / "calibration"
        calibrate(self.calibration, self.base, [folder / calibration], CALIBRATION)
        self.reference = folder / "reference"
        spec: Spec = {
            "dtype": "float32",
            "window": WINDOW,
            "windows": WINDOWS,
            "diagnostics": {"windows": 0, "window": WINDOW},
        }
        reference(self.reference, self.base, [folder / corpus for corpus in CORPORA], [], spec)

    def variants(self, sweeps: dict[str, dict[str, Any]]) -> dict[str, config.Variant]:
        """Expand the variants of ``sweeps`` on this model."""
        params = config.read(Path("params.yaml"))
        architecture = json.loads((self.base / "config.json").read_text())
        width = architecture.get("hidden_size") or architecture["n_embd"]
        between = architecture.get("intermediate_size") or width
        group = next(size for size in (64, 32, 16, 8, 4) if width % size == 0 and between % size == 0)
        filled = {
            name: {key: group if value == GROUP else value for key, value in one.items()}
            for name, one in sweeps.items()
        }
        return config.variants(params.model_copy(update={"compress": filled}))

    def make(self, variant: config.Variant) -> Path:
        """Make the checkpoint of a variant."""
        out = self.folder / "checkpoints" / variant.name
        spec = {
            "sweep": variant.sweep, "method": variant.method, "seed": variant.seed,
            "settings": variant.settings.model_dump(mode="json"), "on": variant.on,
        }  # fmt: skip
        parent = None if variant.on is None else out.with_name(variant.on)
        compress(
            out, variant.name, self.base, parent, self.calibration if variant.settings.statistics else None, [], spec
        )
        return out

    def damage(self, checkpoint: Path) -> dict[str, dict[str, float]]:
        """Corpus -> mean nll, the base's, and KL: nats per token."""
        model, head = load(checkpoint, base=self.base), stored_head(self.base)
        found = {}
        for corpus in CORPORA:
            pieces = list(corpus_damage(model, self.reference, corpus, head, windows_per_batch(WINDOW)))
            columns = {
                name: sum(float(piece[name].astype(float).sum()) for piece in pieces)
                for name in ("nll", "base_nll", "kl")
            }
            tokens = sum(len(piece) for piece in pieces)
            found[corpus] = {name: value / tokens for name, value in columns.items()}
        return found


def measured(bench: Bench, sweeps: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each variant its manifest, layers and damage."""
    for variant in bench.variants(sweeps).values():
        checkpoint = bench.make(variant)
        if failure(checkpoint):
            print(variant.name, failure(checkpoint))
            continue
        yield {
            "manifest": read_manifest(checkpoint),
            "layers": json.loads((checkpoint / LAYERS).read_text()),
            "damage": bench.damage(checkpoint),
        }


def experience(folder: Path) -> None:
    """Write FOLDER/<model>.jsonl for each model: a line for the base, then one for each variant."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[tuple[str, Shape | None]] = [(shape.name, shape) for shape in SHAPES]
    if STORIES.is_dir():
        sources.insert(0, ("stories260K", None))
    for name, shape in sources:
        work, out = folder / f"work-{name}", folder / f"{name}.jsonl"
        if out.is_file():
            continue
        shutil.rmtree(work, ignore_errors=True)
        bench = Bench(train(shape, work / "source") if shape else STORIES, work)
        part = out.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            facts = {
                "base": read_manifest(bench.base), "shape": shape and dataclasses.asdict(shape),
                "trained_tokens": shape and shape.tokens,
                "influence": json.loads((bench.calibration / "influence.json").read_text())["block_influence"],
                "config": json.loads((bench.base / "config.json").read_text()), "calibration": "prose",
            }  # fmt: skip
            stream.write(json.dumps(facts) + "\n")
            for line in measured(bench, SWEEPS):
                stream.write(json.dumps(line) + "\n")
                stream.flush()
        part.rename(out)
        shutil.rmtree(work)


def table(folder: Path) -> pd.DataFrame:
    """Collect the rows of experience.csv from FOLDER/*.jsonl."""
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        facts, *lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        base = cases.base_of(file.stem, facts["config"], facts["base"]["parameters"], facts["influence"])
        base = dataclasses.replace(base, trained_tokens=facts["trained_tokens"] or math.nan)
        made = {line["manifest"]["variant"]: line for line in lines}
        for line in lines:
            parent = made.get(line["manifest"]["on"])
            rows += cases.measured_cases(
                line["manifest"], line["layers"], parent and parent["manifest"], base, line["damage"]
            )
    return cases.table(rows + default_study(Path("reports")))


def default_study(reports: Path) -> list[cases.Case]:
    """Cases of the default study from its committed reports: what params.yaml knows, without layers.json."""
    params = config.read(Path("params.yaml"))
    assert isinstance(params.model, config.WheelModel)
    architecture = {**config.WHEELS[params.model.name], "vocab_size": 49152}
    base = cases.base_of(params.model.name, architecture, 134_515_008)
    curves = pd.read_csv(reports / "curves.csv")
    metrics = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))["variants"]
    perplexity = next(value for key, value in metrics["base"].items() if key.startswith("perplexity["))
    accuracy = next(value for key, value in metrics["base"].items() if key.startswith("mean_accuracy["))
    nll = {corpus: math.log(value) for corpus, value in perplexity.items()}
    chance = sum(CHANCE.values()) / len(CHANCE)
    variants = config.variants(params)
    rows = []
    for name, variant in variants.items():
        found = curves[curves["variant"] == name].set_index("corpus")
        parent = (
            None if variant.on is None else cases.planned_alteration(variants[variant.on], params.calibrate.corpora)
        )
        for case in cases.cases_of(cases.planned_alteration(variant, params.calibrate.corpora), base, parent, nll):
            if case.corpus in found.index:
                here = found.loc[case.corpus]
                retained = (here["mean_accuracy"] - chance) / (accuracy - chance)
                rows.append(case.with_damage(float(here["ln_perplexity_ratio"]), float(here["kl_mean"]), retained))
    return rows


CHANCE = {"agreement": 0.5, "arithmetic": 0.25, "recall": 0.25, "cloze": 0.25}
"""Probe tasks of the default study and what guessing gives."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doctor", description=__doc__)
    parser.add_argument("what", choices=["experience", "table"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "experience":
        experience(arguments.folder)
    else:
        table(arguments.folder).to_csv(predictor.EXPERIENCE, index=False)


if __name__ == "__main__":
    main()
