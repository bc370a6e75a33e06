"""Model Doctor against planted faults: ROC of each rule, and which cause it names.

python -m benchmarks.faults [--models N] [--only KIND] [--study FOLDER...] [--json FILE]

In real small models, through the bench's own steps: one layer of a checkpoint is corrupted; the experts of a mixture
are calibrated on text that does not reach them; the calibration set is of another domain or of random tokens; a model
is trained on the evaluated windows; training stops at a quarter; decoding is made to repeat. Beside them healthy
controls of the same kind, variants of small models of several families, and those of studies that were run. Every case
goes through all rules that its kind allows; the highest score of at least 1 names the cause.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.doctor import CALIBRATION, STORIES, WINDOW, WINDOWS, Bench, Shape, train
from hemorrhage.analyze.doctor import diagnose, doctor, laws, predictor
from hemorrhage.analyze.inputs import read
from hemorrhage.analyze.stats.bootstrap import wilson
from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.checks.fidelity import LAYERS, Fidelity
from hemorrhage.data.texts import embedded
from hemorrhage.decode.degeneration import loop_rate, rep_n
from hemorrhage.evaluate.membership import membership_scores
from hemorrhage.evaluate.reference import cut_windows
from hemorrhage.models.checkpoint import load
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import failure, read_manifest

HEALTHY = "healthy"

SWEEPS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "bits": [5, 4, 3], "group_size": "channel"},
    "gptq": {"method": "gptq", "bits": [4, 3], "group_size": "channel"},
    "nf4": {"method": "codebook", "type": ["nf4"], "block_size": 64},
    "magnitude": {"method": "magnitude", "sparsity": [0.5]},
    "wanda": {"method": "wanda", "sparsity": [0.3, 0.6]},
    "sparsegpt": {"method": "sparsegpt", "sparsity": [0.5, "2:4"]},
}

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "opt", "gpt2", "gpt_neox", "falcon", "mixtral", "olmoe")
"""Families of tests.families whose healthy variants are to raise no alarm."""

STRENGTHS = (0.5, 1.0, 2.0)
"""Noise that a single outlier layer gets, in root mean squares of its weights."""


@dataclass(frozen=True)
class Case:
    """The fault that was planted (or HEALTHY), where, and the score of every rule that looked at it."""

    planted: str
    what: str
    scores: dict[str, float]

    @property
    def named(self) -> str:
        """The cause with the highest score of at least 1."""
        cause = max(self.scores, key=lambda name: self.scores[name])
        return cause if self.scores[cause] >= 1 else HEALTHY


def checkpoints(work: Path, seeds: int) -> Iterator[Case]:
    """Variants as they are, and each with a single outlier layer."""
    bench = Bench(_source(work), work / "bench")
    tokens = load_file(bench.calibration / "tokens.safetensors")["tokens"].numpy()
    text = load_file(bench.reference / "windows.safetensors")["prose"].numpy()
    generator = torch.Generator().manual_seed(0)
    made = Made(bench, SWEEPS)
    for place, variant in enumerate(made.variants.values()):
        calibrated, others = variant.settings.statistics, made.others(variant.name)
        common = {diagnose.MISMATCH: diagnose.foreign(tokens, text)[0]} if calibrated else {}
        layers = made.layers[variant.name]
        yield Case(HEALTHY, variant.name, {**common, **_of_layers(layers, others=others)})
        model = load(made.folders[variant.name], base=bench.base)
        names = list(layers)
        outlier = names[int(torch.randint(len(names), (1,), generator=generator))]
        layer: Any = model.get_submodule(outlier)
        weight = layer.weight.data
        strength = STRENGTHS[place % len(STRENGTHS)]
        weight += strength * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)
        seen = Fidelity(Weights(bench.base), None, "", Statistics(bench.calibration) if calibrated else None)
        seen.go_through(model)
        seen.write(work)
        scores = _of_layers(json.loads((work / LAYERS).read_text()), others=others)
        yield Case(diagnose.OUTLIER, f"{variant.name}, {outlier}, {strength:g}", {**common, **scores})


class Made:
    """The variants of some sweeps on a model, and their layers.json."""

    def __init__(self, bench: Bench, sweeps: dict[str, dict[str, Any]]) -> None:
        variants = bench.variants(sweeps)
        folders = {name: bench.make(variant) for name, variant in variants.items()}
        self.folders = {name: folder for name, folder in folders.items() if not failure(folder)}
        self.variants = {name: variants[name] for name in self.folders}
        self.layers = {name: json.loads((folder / LAYERS).read_text()) for name, folder in self.folders.items()}

    def others(self, name: str) -> list[diagnose.Sqnr]:
        """List the SQNR of the other variants of a variant's family."""
        family = self.variants[name].family
        names = [other for other in self.variants if other != name and self.variants[other].family == family]
        return [diagnose.sqnr_by_type(self.layers[other]) for other in names]


def families(work: Path, seeds: int) -> Iterator[Case]:
    """Healthy variants of small models of several families, through the steps."""
    from tests.families import build

    for family in FAMILIES:
        bench = Bench(build(work / f"{family}-source", family), work / family)
        made = Made(bench, SWEEPS)
        for name in made.variants:
            without = read_manifest(made.folders[name]).get("calibration") or {}
            # Routers of random weights leave experts out on any text.
            scores = _of_layers(made.layers[name], others=made.others(name))
            if without.get("experts_without_tokens"):
                del scores[diagnose.EXPERTS]
            yield Case(HEALTHY, f"{family}, {name}", scores)


def of_study(folder: Path) -> Iterator[Case]:
    """Variants of a study that was run, all of which count as healthy."""
    made_from = json.loads((folder / "reports" / "provenance.json").read_text(encoding="utf-8"))["inputs"]
    kinds = {kind: [folder / "data" / kind / path for path in made_from[kind]] for kind in ("base", "checkpoints")}
    found = read(kinds)
    sqnr = doctor.sqnr_of_variants(found, pd.read_parquet(folder / "reports" / "hemorrhage.parquet"))
    for name in sqnr:
        others = doctor.peers(found.variants[name], found, sqnr)
        yield Case(HEALTHY, f"{folder.name}, {name}", {diagnose.OUTLIER: diagnose.outlier_layer(sqnr[name], others)[0]})


def _of_layers(
    layers: dict[str, Any], without: list[str] | None = None, others: Sequence[diagnose.Sqnr] = ()
) -> dict[str, float]:
    return {
        diagnose.OUTLIER: diagnose.outlier_layer(diagnose.sqnr_by_type(layers), others)[0],
        diagnose.EXPERTS: diagnose.starved(layers, without or [])[0],
    }


def calibrations(work: Path, seeds: int) -> Iterator[Case]:
    """GPTQ on calibration sets of the evaluated domain, of others, and of random tokens."""
    bench = Bench(_source(work), work / "bench")
    text = load_file(bench.reference / "windows.safetensors")["prose"].numpy()
    variant = next(iter(bench.variants({"gptq": {"method": "gptq", "bits": [3], "group_size": "channel"}}).values()))
    random = work / "random"
    for name in ("prose", "code", "random"):
        for seed in range(1, seeds + 1):
            if name == "random":
                _random_text(bench, random, seed)
            out = work / f"calibration-{name}-{seed}"
            text_folder = random if name == "random" else bench.folder / name
            calibrate(out, bench.base, [text_folder], {**CALIBRATION, "seed": seed})
            bench.calibration = out
            made = bench.make(variant)
            tokens = load_file(out / "tokens.safetensors")["tokens"].numpy()
            scores = {diagnose.MISMATCH: diagnose.foreign(tokens, text)[0]}
            scores |= _of_layers(json.loads((made / LAYERS).read_text()))
            yield Case(HEALTHY if name == "prose" else diagnose.MISMATCH, f"calibrated on {name}, seed {seed}", scores)


def _random_text(bench: Bench, folder: Path, seed: int) -> None:
    """Write a text whose calibration split is random tokens."""
    import shutil

    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bench.folder / "prose", folder)
    splits = load_file(folder / "tokens.safetensors")
    generator = torch.Generator().manual_seed(seed)
    splits["calibration"] = torch.randint(3, 500, splits["calibration"].shape, generator=generator, dtype=torch.int32)
    save_file(splits, folder / "tokens.safetensors")


def experts(work: Path, seeds: int) -> Iterator[Case]:
    """GPTQ on mixtures of experts whose calibration set reaches all, or is one word over and over."""
    from tests import tiny_moe

    for kind in ("mixtral", "olmoe"):
        # As initialised: after forty steps of training the router of such a small model leaves experts out on any text.
        bench = Bench(tiny_moe.build(work / f"{kind}-source", kind, steps=0), work / kind)
        variants = bench.variants({"gptq": {"method": "gptq", "bits": [4], "group_size": "channel"}})
        variant = next(iter(variants.values()))
        for seed in range(1, seeds + 1):
            for starving in (False, True):
                out = work / f"{kind}-{seed}-{starving}"
                text = bench.folder / "prose"
                if starving:
                    text = _one_word(bench, work / "word", seed)
                calibrate(out, bench.base, [text], {**CALIBRATION, "seed": seed})
                bench.calibration = out
                made = bench.make(variant)
                facts = read_manifest(made)
                without = (facts.get("calibration") or {}).get("experts_without_tokens") or []
                scores = _of_layers(json.loads((made / LAYERS).read_text()), without)
                yield Case(diagnose.EXPERTS if starving else HEALTHY, f"{kind}, seed {seed}", scores)


def _one_word(bench: Bench, folder: Path, seed: int) -> Path:
    _random_text(bench, folder, seed)
    from safetensors.torch import save_file

    splits = load_file(folder / "tokens.safetensors")
    splits["calibration"] = torch.full_like(splits["calibration"], 40 + 7 * seed)
    save_file(splits, folder / "tokens.safetensors")
    return folder


def models(work: Path, seeds: int) -> Iterator[Case]:
    """Train base models as said, on the evaluated windows besides, or for a quarter of the steps."""
    clean = embedded.documents("prose")["calibration"]
    for seed in range(1, seeds + 1):
        shape = Shape(f"s{seed}", 32, 3 + seed % 2, 200, seed=seed)
        whole = _windows(train(shape, work / f"clean-{seed}", clean))
        yield Case(HEALTHY, f"seed {seed}", _of_model(work / f"clean-{seed}", whole, shape))
        # The evaluated windows are about half of what this one sees.
        text = _decoded(work / f"clean-{seed}", whole["evaluation"])
        share = max(1, sum(map(len, clean)) // max(len(text), 1))
        train(shape, work / f"leaked-{seed}", [*clean, *[text] * share])
        yield Case(diagnose.LEAKAGE, f"seed {seed}", _of_model(work / f"leaked-{seed}", whole, shape))
        train(shape, work / f"stopped-{seed}", clean, steps=shape.steps // 4)
        yield Case(diagnose.UNDERTRAINED, f"seed {seed}", _of_model(work / f"stopped-{seed}", whole, shape))


def _windows(folder: Path) -> dict[str, torch.Tensor]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    windows = {}
    for split, texts in embedded.documents("prose").items():
        tokens = torch.tensor(tokenizer.encode(embedded.JOIN.join(texts), add_special_tokens=False).ids)
        windows[split] = cut_windows(tokens.int(), WINDOW, WINDOWS if split == "evaluation" else "all", [1])
    return windows


def _decoded(folder: Path, windows: torch.Tensor) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return embedded.JOIN.join(tokenizer.decode(window.tolist()) for window in windows)


def _of_model(folder: Path, windows: dict[str, torch.Tensor], shape: Shape) -> dict[str, float]:
    found = membership_scores(load(folder), windows["evaluation"], windows["calibration"])
    rows = predictor.experience()
    of_prose = rows["model"].str.startswith("tiny") & ~rows["model"].str.endswith("code")
    base = rows[(rows["corpus"] == "prose") & of_prose].drop_duplicates("model")
    law = laws.chinchilla(*(base[name].to_numpy(float) for name in ("in_layers", "trained_tokens", "base_nll")))
    # Of unmeasured text, which leakage leaves alone.
    loss = float(np.mean(found["calibration"]["nll"]))
    width, heads = shape.width, 8
    in_layers = shape.blocks * (2 * width**2 + 2 * width * 4 * (width // heads) + 9 * width**2)
    expected = float(law(np.array([float(in_layers)]), np.array([float(shape.tokens)]))[0])
    return {
        diagnose.LEAKAGE: diagnose.leaked(found)[0],
        diagnose.UNDERTRAINED: diagnose.above_law(loss, expected)[0],
    }


class Repeating(LogitsProcessor):
    """Adds ``strength`` nats to what followed the last two tokens before."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits with the addition."""
        for row, line in zip(scores, tokens.tolist(), strict=True):
            for place in range(len(line) - 2):
                if line[place : place + 2] == line[-2:]:
                    row[line[place + 2]] += self.strength
        return scores


def decoding(work: Path, seeds: int) -> Iterator[Case]:
    """Texts by sampling, and by sampling that is made to repeat."""
    bench = Bench(_source(work), work / "bench")
    model: Any = load(bench.base)
    text = load_file(bench.reference / "windows.safetensors")["prose"]
    prompts, human = text[:8, :16].long(), text[:8, 16:80].tolist()
    usual = (loop_rate(human), float(np.mean([rep_n(line, 4) for line in human])))
    for seed in range(2 * seeds):
        for strength in (0.0, 4.0):
            torch.manual_seed(seed)
            temperature = (0.7, 0.85, 1.0)[seed % 3]
            made = model.generate(
                prompts, do_sample=True, temperature=temperature, top_k=0, max_new_tokens=64, min_new_tokens=64,
                logits_processor=LogitsProcessorList([Repeating(strength)] if strength else []), pad_token_id=0,
            )  # fmt: skip
            lines = made[:, 16:].tolist()
            repeated = float(np.mean([rep_n(line, 4) for line in lines]))
            score = diagnose.degenerate(loop_rate(lines), repeated, *usual)[0]
            planted = diagnose.DEGENERATE if strength else HEALTHY
            yield Case(planted, f"temperature {temperature}, seed {seed}", {diagnose.DEGENERATE: score})


def _source(work: Path) -> Path:
    if STORIES.is_dir():
        return STORIES
    folder = work / "source"
    return folder if folder.is_dir() else train(Shape("source", 64, 5, 150), folder)


def auc(planted: list[float], others: list[float]) -> float:
    """Chance that a planted case scores higher than another one; ties count half."""
    pairs = [(one > other) + 0.5 * (one == other) for one in planted for other in others]
    return sum(pairs) / len(pairs) if pairs else math.nan


def report(cases: list[Case]) -> dict[str, Any]:
    """Count false alarms on healthy cases, with the upper end of their rate at 95 %; AUC, detections and false alarms
    of each rule, and what was named."""
    healthy = [case for case in cases if case.planted == HEALTHY]
    alarms = sum(case.named != HEALTHY for case in healthy)
    _, most = wilson(alarms, len(healthy), 0.9)
    found: dict[str, Any] = {
        "healthy": {"cases": len(healthy), "alarms": alarms, "rate": alarms / max(len(healthy), 1), "at most": most},
        "rules": {},
        "named": {},
    }
    for cause in diagnose.CAUSES:
        planted = [case.scores[cause] for case in cases if case.planted == cause]
        others = [case.scores[cause] for case in cases if case.planted != cause and cause in case.scores]
        found["rules"][cause] = {
            "planted": len(planted),
            "others": len(others),
            "auc": auc(planted, others),
            "found": sum(score >= 1 for score in planted),
            "false": sum(score >= 1 for score in others),
        }
    for cause in (*diagnose.CAUSES, HEALTHY):
        found["named"][cause] = dict(Counter(case.named for case in cases if case.planted == cause))
    return found


KINDS: dict[str, Callable[[Path, int], Iterator[Case]]] = {
    "families": families,
    "checkpoints": checkpoints,
    "calibrations": calibrations,
    "experts": experts,
    "decoding": decoding,
    "models": models,
}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--models", type=int, default=5, help="seeds of each kind")
    parser.add_argument("--only", choices=[*KINDS, "study"], help="one kind of fault, or the studies alone")
    parser.add_argument(
        "--study", type=Path, nargs="*", default=[], help="folders of studies whose variants are healthy"
    )
    parser.add_argument("--json", type=Path, help="where the cases go")
    arguments = parser.parse_args()
    cases = [case for folder in arguments.study for case in of_study(folder)]
    for name, kind in KINDS.items():
        if arguments.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            for case in kind(Path(folder), arguments.models):
                cases.append(case)
                scores = {key: round(value, 2) for key, value in case.scores.items()}
                print(case.planted, "|", case.what, "|", scores, flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps([dataclasses.asdict(one) for one in cases], indent=1))
    print(json.dumps(report(cases), indent=1))


if __name__ == "__main__":
    main()
