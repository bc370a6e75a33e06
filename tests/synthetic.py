"""A full set of outputs as the steps before analyze leave them, with made-up but plausible damage.

    python -m tests.synthetic FOLDER

writes base, checkpoints, evaluations, lm-eval's items, programs and decodes of 36 variants, one of them failed, and
prints the command that analyzes them. Shapes of damage follow what is known of small models: a cliff between 4 and 2
bits, past 50 % sparsity, from the first removed layers on. No number of it is a measurement.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save_file

from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.report.__main__ import draw
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import describe

CORPORA = ("prose", "code")
TASKS = {"agreement": 0.5, "arithmetic": 0.25, "recall": 0.25, "cloze": 0.25}
AT_CHANCE = "arithmetic"
"""The task on which the base guesses."""

HARNESS = {"boolq": (0.5, 0.62), "piqa": (0.5, 0.5)}
"""lm-eval's tasks: chance and floor."""

PROGRAMS = "humaneval"
LAYERS = 6
HEADS = 2
DIAGNOSED = 4
"""Windows that the diagnostics read."""
PARAMETERS = 134_515_008
IN_LINEARS = 106_168_320
ARCHITECTURE = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True}
BUDGET = {"kl": 0.1, "flips": 0.4, "accuracy_loss_points": 30, "perplexity": 1.1}
ENVIRONMENT = {
    "id": "0a1b2c3d",
    "python": "3.11.2",
    "machine": "Linux x86_64 synthetic",
    "threads": "1",
    "device": "cpu",
    "torch": "2.14.0",
    "transformers": "5.17.0",
}


@dataclass(frozen=True)
class Point:
    """A variant and how badly it is hurt: ``damage`` is its mean rise of nll on prose, in nats."""

    variant: str
    sweep: str
    method: str
    settings: dict[str, Any]
    severity: float
    stored_bits: float
    parameters: int
    damage: float
    failure: str | None = None


def points() -> list[Point]:
    """36 variants in the order of the default params.yaml."""
    found: list[Point] = []
    damage = {
        "rtn": {8: 0.002, 4: 0.16, 3: 0.95, 2: 6.1},
        "gptq": {8: 0.0015, 4: 0.07, 3: 0.34, 2: 3.3},
    }
    for method, by_bits in damage.items():
        for bits, hurt in by_bits.items():
            stored = IN_LINEARS * (bits + 20 / 64) + (PARAMETERS - IN_LINEARS) * 16
            settings = {"bits": bits, "group_size": 64}
            found.append(Point(f"{method}-{bits}", method, method, settings, bits, stored, PARAMETERS, hurt))
    scale = {"magnitude": 1.7, "wanda": 0.62, "sparsegpt": 0.42}
    for method, factor in scale.items():
        for sparsity in (0.3, 0.5, 0.6, 0.7, "2:4"):
            share = 0.5 if sparsity == "2:4" else float(sparsity)
            hurt = factor * (0.25 * share + 14 * max(share - 0.42, 0) ** 1.5) * (1.9 if sparsity == "2:4" else 1)
            mask = 0.65 if sparsity == "2:4" else 1.0
            stored = IN_LINEARS * (16 * (1 - share) + mask) + (PARAMETERS - IN_LINEARS) * 16
            name = f"{method}-{str(sparsity).replace(':', 'of')}"
            broken = "LinAlgError: the Hessian of model.layers.7.mlp.down_proj is not positive definite"
            failure = broken if name == "sparsegpt-0.7" else None
            found.append(Point(name, method, method, {"sparsity": sparsity}, share, stored, PARAMETERS, hurt, failure))
    for sweep, order, factor in (("shortgpt", "influence", 1.0), ("random_depth", "random", 1.8)):
        for removed in (0.1, 0.2, 0.3, 0.4, 0.5):
            left = PARAMETERS - int(IN_LINEARS * removed)
            hurt = factor * (3.1 * removed + 9 * max(removed - 0.25, 0))
            of_depth = {"removed": removed, "order": order}
            found.append(Point(f"{sweep}-{removed}", sweep, "depth", of_depth, removed, 16.0 * left, left, hurt))
    for sweep, method, of_expansion, added, hurt in (
        ("llama_pro", "llama_pro", {"added": 0.2}, 0.2, 0.0),
        ("solar", "depth_up_scaling", {"overlap": 0.25}, 0.5, 1.35),
        ("duplication", "duplication", {"added": 0.2}, 0.2, 0.44),
    ):
        more = PARAMETERS + int(IN_LINEARS * added)
        found.append(Point(f"{sweep}-{added}", sweep, method, of_expansion, added, 16.0 * more, more, hurt))
    return found


def write(folder: Path, windows: int = 32, window: int = 256, items: int = 40, seed: int = 0) -> dict[str, list[Path]]:
    """Write everything into ``folder``; returns what the analysis is given: kind of output -> its folders."""
    rng = np.random.default_rng(seed)
    everything = points()
    texts = {corpus: _text(rng, windows, window) for corpus in CORPORA}
    base = _directory(folder, "base", "base", _base_manifest())
    (base / "config.json").write_text(json.dumps(ARCHITECTURE), encoding="utf-8")
    study = Study(folder, texts, _base_items(rng, items), rng, windows, window)
    found: dict[str, list[Path]] = {
        "base": [base],
        "checkpoints": [],
        "evaluations": [],
        "harness": [],
        "code_tasks": [],
    }
    found["evaluations"].append(study.evaluation("base", 0.0))
    found["harness"].append(study.harness("base", 0.0))
    found["code_tasks"].append(study.code_tasks("base", 0.0))
    for point in everything:
        found["checkpoints"].append(_checkpoint(folder, point))
        found["evaluations"].append(study.evaluation(point.variant, point.damage, point.failure, point.stored_bits))
        found["harness"].append(study.harness(point.variant, point.damage, point.failure))
        found["code_tasks"].append(study.code_tasks(point.variant, point.damage, point.failure))
    prompts = rng.random(24)
    by_name = {point.variant: point.damage for point in everything}
    found["decodes"] = [
        _decode(folder, variant, by_name.get(variant, 0.0), prompts, rng)
        for variant in ("base", "gptq-4", "gptq-3", "wanda-0.5")
    ]
    return found


def report(out: Path, found: Inputs, spec: Spec, address: str = "0123456789ab") -> None:
    """Everything that a run leaves in reports/: the numbers, and the page that is drawn from them."""
    analyze(out, found, spec, address)
    draw(out, "page")


def _directory(folder: Path, kind: str, name: str, manifest: dict[str, Any], **tables: pd.DataFrame) -> Path:
    directory = folder / kind / name / f"{abs(hash_of(kind + name)):012x}"
    directory.mkdir(parents=True)
    for table, content in tables.items():
        content.to_parquet(directory / f"{table}.parquet", index=False)
    content_of = {**manifest, "environment": ENVIRONMENT}
    (directory / "manifest.json").write_text(json.dumps(content_of), encoding="utf-8")
    return directory


def hash_of(text: str) -> int:
    """A number that a text always gives."""
    return int.from_bytes(text.encode(), "big") % (1 << 48)


def _base_manifest() -> dict[str, Any]:
    return {
        "variant": "base",
        "sweep": "base",
        "family": "base",
        "method": "base",
        "settings": {},
        "seed": None,
        "axis": "none",
        "severity": 0.0,
        "size_ratio": 1.0,
        "changed": 0.0,
        "disk_bytes": PARAMETERS * 2 + 30_000,
        "effective_bits": 16.0,
        "parameters": PARAMETERS,
        "sparsity": 0.0,
        "model": {"source": "wheel", "name": "synthetic-135m"},
        "note": "Made-up numbers for development: no model was run.",
    }


def _checkpoint(folder: Path, point: Point) -> Path:
    method = method_of(point.method)
    settings = method.settings.model_validate(point.settings)
    manifest = {"variant": point.variant, "sweep": point.sweep, "seed": 0, **describe(method, settings)}
    if point.failure:
        return _directory(folder, "checkpoints", point.variant, {**manifest, "failure": point.failure})
    stored = point.stored_bits
    masked = settings.mask_bits is not None
    manifest |= {
        "severity": point.severity,
        "disk_bytes": PARAMETERS * 2 + 30_400 if masked else int(stored / 8) + 30_000,
        "mask_bits": 1.0 if masked else None,
        "theoretical": "masks: no engine today stores or computes less for zeros" if masked else "",
        "effective_bits": stored / point.parameters,
        "size_ratio": stored / (PARAMETERS * 16),
        "parameters": point.parameters,
        "sparsity": point.severity if settings.axis == "sparsity" else 0.0,
        "changed": 0.8,
    }
    return _directory(folder, "checkpoints", point.variant, manifest)


def _text(rng: np.random.Generator, windows: int, window: int) -> dict[str, np.ndarray]:
    difficulty = rng.normal(0, 0.25, windows)[:, None]
    nll = (rng.gamma(0.9, 3.2, (windows, window - 1)) * np.exp(difficulty)).astype("float32").astype(float)
    right = nll < 0.7
    return {
        "nll": nll,
        "fragility": rng.lognormal(0, 0.25, windows)[:, None],
        "count": np.ceil(np.exp(8 - nll)),
        "right": right,
        "confidence": np.where(right, np.exp(-nll), rng.uniform(0.02, 0.9, nll.shape)),
        "entropy": rng.gamma(2, 1, nll.shape),
    }


class Study:
    """Makes the outputs of one variant after another from one state of chance."""

    def __init__(
        self,
        folder: Path,
        texts: dict[str, dict[str, np.ndarray]],
        base_items: pd.DataFrame,
        rng: np.random.Generator,
        windows: int,
        window: int,
    ) -> None:
        self.folder, self.texts, self.base_items, self.rng = folder, texts, base_items, rng
        self.windows, self.window = windows, window
        solved = {"task": PROGRAMS, "item": range(20), "group": range(20), "base_correct": rng.random(20) < 0.6}
        self.solved = pd.DataFrame({**solved, "base_choice": 0})

    def protocol(self) -> str:
        """As the reference step states it."""
        windows, window = self.windows, self.window
        return (
            f"window={window} stride={window} windows={windows}/{3 * windows} bos=0 "
            f'join="\\n\\n" predicted={windows * (window - 1)} dtype=float32'
        )

    def tag(self) -> str:
        """What a language metric's name carries of it."""
        return f"w{self.window}-s{self.window}-b0-jnn-n{self.windows * (self.window - 1)}-f32"

    def evaluation(self, variant: str, damage: float, failure: str | None = None, stored: float = 0.0) -> Path:
        """Tokens, items, diagnostics and cost."""
        facts: dict[str, Any] = {
            "variant": variant,
            "corpora": {name: {"sha256": f"{hash_of(name):064x}", "protocol": self.protocol()} for name in self.texts},
            "tasks": _tasks({name: {"chance": chance} for name, chance in TASKS.items()}),
        }
        if failure:
            return _directory(self.folder, "evaluations", variant, {**facts, "failure": f"ValueError: {failure}"})
        facts |= {
            "dtype": "float32",
            "diagnostics": {"protocol": f"windows={DIAGNOSED} window={self.window}", "sha256": "ab" * 32},
        }
        parts = [_tokens(self.rng, corpus, text, damage) for corpus, text in self.texts.items()]
        windows = pd.DataFrame(
            {"corpus": corpus, "window": window, "tokens": self.window - 1, "words": 190 + window, "bytes": 1100}
            for corpus in self.texts
            for window in range(self.windows)
        )
        directory = _directory(
            self.folder,
            "evaluations",
            variant,
            facts,
            tokens=pd.concat(parts, ignore_index=True),
            items=_items(self.rng, self.base_items, damage),
            windows=windows,
            diagnostics=_diagnostics(self.rng, damage),
        )
        (directory / "cost.json").write_text(json.dumps(_cost(self.rng, stored)), encoding="utf-8")
        return directory

    def harness(self, variant: str, damage: float, failure: str | None = None) -> Path:
        """lm-eval's items; boolq's base does no better than its floor."""
        levels = {name: {"chance": chance, "floor": floor} for name, (chance, floor) in HARNESS.items()}
        facts = {"variant": variant, "tasks": _tasks(levels)}
        if failure:
            return _directory(self.folder, "harness", variant, {**facts, "failure": f"ValueError: {failure}"})
        frames = []
        for task, share in (("boolq", 0.6), ("piqa", 0.85)):
            base = np.random.default_rng(hash_of(task)).random(60) < share
            kept = self.rng.random(60) < math.exp(-0.5 * damage)
            correct = np.where(kept, base, self.rng.random(60) < 0.5)
            choice = np.where(correct, 0, 1)
            frames.append(
                pd.DataFrame(
                    {
                        "task": task,
                        "item": range(60),
                        "group": range(60),
                        "choice": choice,
                        "correct": correct,
                        "margin": 0.5,
                    }
                )
            )
        return _directory(self.folder, "harness", variant, facts, items=pd.concat(frames, ignore_index=True))

    def code_tasks(self, variant: str, damage: float, failure: str | None = None) -> Path:
        """Programs that pass or fail their tests."""
        facts = {"variant": variant, "tasks": _tasks({PROGRAMS: {"chance": 0.0}})}
        if failure:
            return _directory(self.folder, "code_tasks", variant, {**facts, "failure": f"ValueError: {failure}"})
        kept = self.rng.random(20) < math.exp(-1.5 * damage)
        correct = self.solved["base_correct"].to_numpy() & kept
        programs = pd.DataFrame(
            {
                "task": PROGRAMS,
                "item": range(20),
                "completion": [f"return {item}" if same else "pass" for item, same in enumerate(kept)],
                "status": np.where(correct, "passed", "failed"),
                "correct": correct,
                "seconds": 0.1,
            }
        )
        return _directory(self.folder, "code_tasks", variant, facts, programs=programs)


def _tasks(levels: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": f"{hash_of(name):064x}", "protocol": "synthetic", **level} for name, level in levels.items()
    }


def _tokens(rng: np.random.Generator, corpus: str, text: dict[str, np.ndarray], damage: float) -> pd.DataFrame:
    base = text["nll"]
    hurt = damage * text["fragility"] * (1.25 if corpus == "code" else 1.0)
    noise = rng.normal(0, 1, base.shape) * np.sqrt(hurt) * 0.5
    kl = hurt * 0.9 * rng.gamma(0.35, 1 / 0.35, base.shape)
    same = rng.random(base.shape) < np.exp(-0.75 * np.sqrt(hurt))
    windows, positions = np.indices(base.shape)
    columns = {
        "nll": np.maximum(base + hurt + noise, 0),
        "base_nll": base,
        "kl": kl,
        "same_top1": same,
        "top10_overlap": np.round(10 * np.exp(-0.4 * np.sqrt(hurt) * rng.random(base.shape) * 2)) / 10,
        "entropy": text["entropy"] + hurt,
        "base_entropy": text["entropy"],
        "confidence": text["confidence"] * np.exp(-hurt),
        "base_confidence": text["confidence"],
        "acceptance": np.where(positions % 16 == base.shape[1] % 16, np.exp(-0.5 * np.sqrt(hurt)), np.nan),
        "right": text["right"] & same,
        "base_right": text["right"],
        "count": text["count"],
    }
    types: dict[str, npt.DTypeLike] = {"same_top1": bool, "right": bool, "base_right": bool, "count": "int64"}
    table = {
        name: np.broadcast_to(values, base.shape).ravel().astype(types.get(name, "float32"))
        for name, values in columns.items()
    }
    return pd.DataFrame({"corpus": corpus, "window": windows.ravel(), "position": positions.ravel() + 1, **table})


def _base_items(rng: np.random.Generator, items: int) -> pd.DataFrame:
    frames = []
    for task, chance in TASKS.items():
        skill = 0.0 if task == AT_CHANCE else 0.62
        correct = rng.random(items) < chance + (1 - chance) * skill
        choices = round(1 / chance)
        choice = np.where(correct, 0, rng.integers(1, choices, items))
        # The items of recall share their choices in fives.
        group = np.arange(items) // 5 if task == "recall" else np.arange(items)
        columns = {"task": task, "item": range(items), "group": group}
        frames.append(pd.DataFrame({**columns, "base_choice": choice, "base_correct": correct}))
    return pd.concat(frames, ignore_index=True)


def _items(rng: np.random.Generator, base: pd.DataFrame, damage: float) -> pd.DataFrame:
    choices = base["task"].map({task: round(1 / chance) for task, chance in TASKS.items()})
    drawn = (rng.random(len(base)) * choices).astype(int)
    kept = rng.random(len(base)) < math.exp(-0.9 * damage)
    choice = np.where(kept, base["base_choice"], drawn)
    return pd.DataFrame(
        {
            "task": base["task"],
            "item": base["item"],
            "group": base["group"],
            "choice": choice,
            "correct": choice == 0,
            "margin": rng.normal(0, 1, len(base)),
            "base_choice": base["base_choice"],
            "base_correct": base["base_correct"],
        }
    )


def _diagnostics(rng: np.random.Generator, damage: float) -> pd.DataFrame:
    """Errors that grow with depth; the whole model's, the layers' and the heads'."""
    rows: list[tuple[int, int, int, str, float]] = []
    for window in range(DIAGNOSED):
        rows.append((-1, -1, window, "log_amplification", 0.1 * damage + rng.normal(0, 0.01)))
        for layer in range(LAYERS):
            error = math.sqrt(damage) * 0.1 * math.exp(rng.normal(0, 0.1))
            rows.append((layer, -1, window, "local_error", error))
            rows.append((layer, -1, window, "local_sqnr", -20 * math.log10(error + 1e-7)))
            rows.append((layer, -1, window, "relative_error", error * math.sqrt(layer + 1)))
            rows.append((layer, -1, window, "cosine", 1 / math.sqrt(1 + error**2)))
            rows.append((layer, -1, window, "write_norm", 0.3 + 0.1 * rng.random()))
            for head in range(HEADS):
                rows.append((layer, head, window, "attention_entropy", 0.5 + 0.1 * rng.random()))
    return pd.DataFrame(rows, columns=["layer", "head", "window", "metric", "value"])


def _cost(rng: np.random.Generator, stored: float) -> dict[str, Any]:
    return {
        "prefill": list(900 + 30 * rng.random(5)),
        "decode": list(40 + 2 * rng.random(5)),
        "batch": 1,
        "length": 128,
        "new_tokens": 32,
        "threads": 1,
        "dtype": "float32",
        "peak_bytes": 600_000_000,
        "peak_of": "process",
        "kv_bytes": 7_372_800,
        "kv_bytes_formula": 7_372_800,
        "theoretical": "weights: a dequantized dense copy computes" if 0 < stored < PARAMETERS * 12 else "",
    }


STRATEGIES: dict[str, tuple[dict[str, Any], float]] = {
    "greedy": ({}, 0.9),
    "beam_4": ({"beams": 4}, 0.95),
    "temperature": ({"temperature": 0.7}, 0.75),
    "temperature_high": ({"strategy": "temperature", "temperature": 1.5}, 0.3),
    "top_k": ({"k": 50}, 0.6),
    "top_p": ({"p": 0.95}, 0.62),
    "min_p": ({"p": 0.1}, 0.72),
    "typical": ({"mass": 0.92}, 0.58),
    "eta": ({"epsilon": 0.0006}, 0.55),
    "contrastive": ({"alpha": 0.6, "k": 4}, 0.8),
    "fsd": ({"alpha": 0.45, "k": 3, "n": 2}, 0.85),
}


def _decode(folder: Path, variant: str, damage: float, prompts: np.ndarray, rng: np.random.Generator) -> Path:
    rows = []
    features = {"prose.human": np.random.default_rng(5).normal(size=(12, 8)).astype(np.float32)}
    for strategy, (settings, skill) in STRATEGIES.items():
        stated = json.dumps({"strategy": strategy, **settings})
        for item, difficulty in enumerate(prompts):
            right = bool(difficulty < skill * math.exp(-0.6 * damage))
            rows.append(_text_row(strategy, stated, "closed_ended", "recall", item, [5, 6, 7], right, math.nan))
        for item in range(12):
            period = rng.integers(8, 30) if skill > 0.8 else 40
            tokens = np.resize(rng.integers(0, 400, period), 40)
            if strategy == "greedy":
                # The base's text, up to where a damaged model leaves it.
                tokens = np.resize(np.random.default_rng(item).integers(0, 400, 12), 40)
                tokens[min(int(rng.exponential(8 / max(damage, 1e-9))), 40) :] += 1
            surprise = rng.normal(0.8 + 2.2 * (1 - skill) + damage, 0.2)
            rows.append(_text_row(strategy, stated, "open_ended", "prose", item, tokens.tolist(), False, surprise))
        features[f"prose.strategy.{strategy}"] = features["prose.human"] + np.float32(damage + 1 - skill)
    manifest = {
        "variant": variant,
        "datasets": {name: {"sha256": f"{hash_of(name):064x}"} for name in ("recall", "prose")},
        "protocol": {
            "recall": f"items={len(prompts)} new_tokens=8; batch=12",
            "prose": "items=12 prefix=32 new_tokens=40; batch=12",
        },
        "conditions": {
            "recall": {"chat_template": None, "shots": 0, "new_tokens": 8},
            "prose": {"chat_template": None, "shots": 0, "new_tokens": 40},
        },
        "seed": 0,
    }
    human = pd.DataFrame(
        {
            "dataset": "prose",
            "item": range(12),
            "text": "a text",
            "tokens": [np.random.default_rng(item).permutation(400)[:40].tolist() for item in range(12)],
            "base_nll": 2.0,
        }
    )
    written = _directory(folder, "decodes", variant, manifest, generations=pd.DataFrame(rows), human=human)
    save_file(features, written / "features.safetensors")
    return written


def _text_row(
    strategy: str,
    settings: str,
    task: str,
    dataset: str,
    item: int,
    tokens: list[int],
    right: bool,
    nll: float,
) -> dict[str, Any]:
    answer = str(item if right else 1000 + item) if task == "closed_ended" else ""
    return {
        "strategy": strategy,
        "settings": settings,
        "task": task,
        "dataset": dataset,
        "item": item,
        "draw": 0,
        "prompt": "a prompt",
        "text": "a text",
        "tokens": tokens,
        "finish": "eos" if task == "closed_ended" else "limit",
        "answer": answer,
        "correct": right,
        "strict_answer": answer,
        "strict_correct": right,
        "base_nll": nll,
        "seconds": 0.5,
    }


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.synthetic")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder)
    kinds = ("evaluations", "harness", "code_tasks", "decodes", "checkpoints", "base")
    given = " ".join(f"--outputs {kind} {folder}/{kind}/*/*" for kind in kinds)
    spec = json.dumps({"resamples": 1000, "confidence": 0.95, "seed": 0, "budget": BUDGET})
    print(f"python -m hemorrhage.analyze {folder}/reports {given} --spec '{spec}' --address 0123456789ab")
    print(f"python -m hemorrhage.analyze.report {folder}/reports --address 0123456789ab")


if __name__ == "__main__":
    main()


def pick(outputs: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """Some kinds of output."""
    return {kind: outputs[kind] for kind in kinds}


def of(outputs: dict[str, Any], kind: str, variant: str) -> Path:
    """The output of a variant."""
    return Path(next(path for path in outputs[kind] if path.parent.name == variant))
