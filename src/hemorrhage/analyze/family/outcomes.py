"""What is compared between models: a number of each, higher for more damage or for a threshold that lies further out.

Of the unaltered model its loss, how far its accuracy spreads over decoding strategies, how the norm of its state grows
over the blocks, and how redundant these are. Of a variant the logarithm of its KL from its own base, so that a
difference of two models is a ratio, and what each doubling of the position in the text multiplies it by. Of a curve
where it reaches a level, on its own axis: of bits in the bits of the setting. Damage and thresholds are means over the
corpora.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.curves.entries import Threshold
from hemorrhage.analyze.family.models import LOSS_OF, Model
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows.decoding import SPREAD
from hemorrhage.analyze.rows.diagnostics import DIAGNOSTICS
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES

FIRST, LEAST_POSITIONS = 16, 4
"""Positions that a drift leaves out, and buckets of positions that it takes."""

LEVELS = {"ten_percent": "+10 % perplexity", "two_fold": "2× perplexity"}
"""Definition of a threshold -> its name."""

LOSS, SPREAD_OF, INSIDE, DAMAGE, DRIFT, THRESHOLD = "loss", "spread", "inside", "damage", "drift", "threshold"

GROWTH = "growth of the state's norm over the depth"
REDUNDANCY = {
    "block_influence": "block influence, mean over blocks",
    "effective_rank": "effective rank of the state, mean over blocks",
    "self_repair": "self-repair of a block that is left out, mean over blocks",
}
"""Diagnostic of every block -> what it is called; less influence, less rank and more repair are more redundancy."""

POSITION = re.compile(r"kl_mean\{position=(?:\d+-)?(\d+)\}")
"""The metric of a bucket of positions, and the last of them."""


@dataclass(frozen=True)
class Outcome:
    """A number of each model: ``values`` by model, NaN where it is not known, ``reasons`` why.

    ``kind``: of an unaltered model's loss, spread or inside, a variant's damage or drift, or a
    threshold; ``name``: the variant, or the curve; ``measure``: what it is, with its unit; ``is_ratio``: the values are
    logarithms. ``severity``: of a variant, on its axis.
    """

    kind: str
    name: str
    measure: str
    is_ratio: bool
    values: dict[str, float]
    reasons: dict[str, str]
    severity: float | None = None

    def known(self, models: Sequence[Model]) -> list[float]:
        """Return the values of some models that are known."""
        return [self.values[model.name] for model in models if math.isfinite(self.values[model.name])]


def outcomes(models: Sequence[Model]) -> list[Outcome]:
    """List every outcome that at least two models have: losses, thresholds, then the damage of each variant."""
    of_models, of_variants = (_losses, _spreads, _insides), (_thresholds, _damages, _drifts)
    every = [each for list_all in (*of_models, *of_variants) for each in list_all(models)]
    return [each for each in every if sum(map(math.isfinite, each.values.values())) > 1]


def _losses(models: Sequence[Model]) -> Iterator[Outcome]:
    """Yield the loss of the unaltered models on each corpus."""
    facts = {model.name: model.facts for model in models}
    for name in dict.fromkeys(name for known in facts.values() for name in known if name.startswith(LOSS_OF)):
        values = {model: known.get(name, math.nan) for model, known in facts.items()}
        reasons = {model: "not measured" for model, value in values.items() if not math.isfinite(value)}
        yield Outcome(LOSS, "unaltered", name, False, values, reasons)


def _spreads(models: Sequence[Model]) -> Iterator[Outcome]:
    """Yield how far the accuracy of the unaltered models spreads over decoding strategies, of each task."""
    numbers = {model.name: model.study.numbers for model in models}
    tasks = [task for each in numbers.values() for task in each.datasets(SPREAD, strategy=True)]
    for task in dict.fromkeys(tasks):
        known = {name: each.get(BASE, SPREAD, task, ALL_STRATEGIES) for name, each in numbers.items()}
        values = {name: math.nan if spread is None else spread.value for name, spread in known.items()}
        reasons = {name: "no spread: the task is at its floor" for name, spread in known.items() if spread is None}
        yield Outcome(SPREAD_OF, "unaltered", f"spread over strategies of {task} (share)", False, values, reasons)


def _insides(models: Sequence[Model]) -> Iterator[Outcome]:
    """Yield what the diagnostics say of the unaltered models: growth over the depth, and redundancy."""
    growth = {model.name: _growth(model) for model in models}
    yield _inside(GROWTH, True, {name: math.log(value) if value > 0 else math.nan for name, value in growth.items()})
    for metric, called in REDUNDANCY.items():
        means = {model.name: model.study.numbers.get(BASE, f"{metric}{{layers=mean}}", DIAGNOSTICS) for model in models}
        yield _inside(called, False, {name: math.nan if each is None else each.value for name, each in means.items()})


def _inside(called: str, is_ratio: bool, values: dict[str, float]) -> Outcome:
    reasons = {name: "not measured" for name, value in values.items() if not math.isfinite(value)}
    return Outcome(INSIDE, "unaltered", called, is_ratio, values, reasons)


def _growth(model: Model) -> float:
    """Return the norm of the last block's output over that of the first one's input, as a product over blocks."""
    steps: list[float] = []
    while (step := model.study.numbers.get(BASE, f"norm_growth{{layer={len(steps)}}}", DIAGNOSTICS)) is not None:
        steps.append(step.value)
    return math.prod(steps) if steps else math.nan


def _damages(models: Sequence[Model]) -> Iterator[Outcome]:
    variants = {
        variant.name: variant
        for model in models
        for variant in model.study.inputs.variants.values()
        if variant.name != BASE
    }
    for name, variant in variants.items():
        divergences = {model.name: model.mean(name, "kl_mean") for model in models}
        yield Outcome(
            DAMAGE,
            name,
            "KL (nats per token)",
            True,
            {model: math.log(kl) if kl > 0 else math.nan for model, kl in divergences.items()},
            {model: "no KL above 0 on every corpus" for model, kl in divergences.items() if not kl > 0},
            variant.manifest.get("severity"),
        )


def _drifts(models: Sequence[Model]) -> Iterator[Outcome]:
    """Yield what each doubling of the position multiplies the KL of a variant by, where windows are long enough."""
    by_variant: dict[str, dict[str, float]] = {}
    for model in models:
        for variant, value in _slopes_by_position(model).items():
            by_variant.setdefault(variant, {})[model.name] = value
    for variant, known in by_variant.items():
        values = {model.name: known.get(model.name, math.nan) for model in models}
        reasons = {
            name: "no KL above 0 at four positions" for name, value in values.items() if not math.isfinite(value)
        }
        yield Outcome(DRIFT, variant, "KL at twice the position over KL (ratio)", True, values, reasons)


def _slopes_by_position(model: Model) -> dict[str, float]:
    """Return by variant the slope of ln KL over log2 of the position, the mean over corpora; the first 16 are left out.

    A text's beginning has little to be wrong about.
    """
    rows = model.study.rows
    rows = rows[rows["metric"].str.startswith("kl_mean{position=") & (rows["estimate"] > 0)]
    ends = rows["metric"].map(strip_protocol).str.extract(POSITION, expand=False).astype(float)
    rows = rows.assign(at=np.log2(ends))
    slopes: dict[str, list[float]] = {}
    for (variant, _), points in rows[rows["at"] > math.log2(FIRST)].groupby(["variant", "dataset"], sort=False):
        if len(points) >= LEAST_POSITIONS:
            slope = np.polyfit(points["at"], np.log(points["estimate"]), 1)[0]
            slopes.setdefault(str(variant), []).append(float(slope))
    return {
        variant: float(np.mean(values)) for variant, values in slopes.items() if len(values) == len(model.study.corpora)
    }


def _thresholds(models: Sequence[Model]) -> Iterator[Outcome]:
    by_curve: dict[tuple[str, str], dict[str, list[Threshold]]] = {}
    units: dict[tuple[str, str], str] = {}
    for model in models:
        for entry in model.curves():
            for level in LEVELS:
                key = entry.name, level
                by_curve.setdefault(key, {}).setdefault(model.name, []).append(entry.thresholds[level])
                units[key] = "bits of the setting" if entry.axis == "bits" else entry.unit
    for (curve, level), by_model in by_curve.items():
        values, reasons = {}, {}
        for model in models:
            thresholds = by_model.get(model.name, [])
            values[model.name] = _place(thresholds)
            if not math.isfinite(values[model.name]):
                reasons[model.name] = next((each.answer for each in thresholds if not each.is_located), "not measured")
        yield Outcome(THRESHOLD, curve, f"{LEVELS[level]} ({units[curve, level]})", False, values, reasons)


def _place(thresholds: Sequence[Threshold]) -> float:
    """Return where a curve reaches a level, the mean over corpora; NaN where one does not reach it."""
    if not thresholds or not all(each.is_located for each in thresholds):
        return math.nan
    labels = [each.label_bits for each in thresholds]
    places = [
        each.estimate if label is None else label.estimate for each, label in zip(thresholds, labels, strict=True)
    ]
    return float(np.mean(places))
