"""What is compared between models: a number of each, higher for more damage or for a threshold that lies further out.

Of the unaltered model its loss, and how far its accuracy spreads over decoding strategies. Of a variant the logarithm
of its KL from its own base, so that a difference of two models is a ratio. Of a curve where it reaches a level, on its
own axis: of bits in the bits of the setting. Damage and thresholds are means over the corpora.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.curves.entries import Threshold
from hemorrhage.analyze.family.models import LOSS_OF, Model
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.rows.decoding import SPREAD
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES

LEVELS = {"ten_percent": "+10 % perplexity", "two_fold": "2× perplexity"}
"""Definition of a threshold -> its name."""

LOSS, SPREAD_OF, DAMAGE, THRESHOLD = "loss", "spread", "damage", "threshold"


@dataclass(frozen=True)
class Outcome:
    """A number of each model: ``values`` by model, NaN where it is not known, ``reasons`` why.

    ``kind``: of an unaltered model's loss or spread, a variant's damage or a threshold; ``name``: the variant, or the
    curve; ``measure``: what it is, with its unit; ``is_ratio``: the values are logarithms. ``severity``: of a variant,
    on its axis.
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
    every = [*_losses(models), *_spreads(models), *_thresholds(models), *_damages(models)]
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
