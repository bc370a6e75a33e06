"""What the claims are judged on, and the words of a verdict.

A variant's damage is the mean over corpora of its log-perplexity ratio: corpora of one variant are no independent
evidence, so that a method counts once, however many corpora it was measured on. Claims are about methods, of which a
calibrated variant is one draw: its resamples hold what other draws would change (hemorrhage.analyze.rows.draws).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows import draws
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
NOT_DECIDED = "not decided"
NOT_MEASURED = "not measured"

AGREE = 0.8
"""Share of the comparisons that must go the way of their mean: a mean alone may be one comparison's doing."""

LEAST_METHODS = 2
"""Methods that a verdict on a family of methods rests on: one method is a verdict on that method."""


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim and what was measured: ``estimate`` with its interval in ``unit``, of so many
    ``comparisons``."""

    verdict: str
    measured: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    comparisons: int = 0


@dataclass(frozen=True)
class Pair:
    """Two variants to compare: damage of ``first`` minus that of ``second``."""

    first: Variant
    second: Variant


@dataclass(frozen=True)
class Damage:
    """A log-perplexity ratio, mean over corpora, with its interval and the same in each resample."""

    value: float
    low: float
    high: float
    replicates: Floats = field(repr=False)


@dataclass(frozen=True)
class Evidence:
    """All that was measured."""

    inputs: Inputs
    results: Results
    numbers: Numbers
    thresholds: Sequence[CurveEntry]
    spec: Spec
    corpora: list[str] = field(default_factory=list)

    def variants(self, *families: str) -> list[Variant]:
        """List measured alterations of the base model of these families, without controls."""
        return [
            variant
            for variant in self.inputs.variants.values()
            if variant.family in families
            and variant.on == BASE
            and failure(self.inputs, variant) is None
            and not variant.is_control
            and self.damage(variant.name) is not None
        ]

    def damage(self, variant: str, corpora: Sequence[str] | None = None) -> Damage | None:
        """Average the damage over corpora, all by default; None where one of them has no finite number."""
        chosen = self.corpora if corpora is None else corpora
        ratios = [self.numbers.get(variant, "ln_perplexity_ratio", corpus) for corpus in chosen]
        known = [ratio.value for ratio in ratios if ratio is not None]
        pairs = [(variant, corpus) for corpus in chosen]
        if not chosen or len(known) < len(chosen) or any(pair not in self.results.replicates for pair in pairs):
            return None
        replicates = np.mean([self.results.replicates[pair] for pair in pairs], axis=0)
        replicates = replicates * self._draws.factors(self.inputs.variants[variant], len(replicates), self.spec.seed)
        low, high = bootstrap.interval(replicates, self.spec.confidence, self.blocks(chosen))
        return Damage(float(np.mean(known)), low, high, replicates)

    @cached_property
    def _draws(self) -> draws.Draws:
        return draws.measure(self.inputs, self.numbers)

    def blocks(self, corpora: Sequence[str] | None = None) -> int:
        """Return the least number of windows of some corpora."""
        return min((self.results.blocks[corpus] for corpus in corpora or self.corpora), default=0)

    def size(self, variant: Variant) -> float:
        """Return the stored bytes over the base's."""
        return float(variant.manifest.get("size_ratio", math.nan))


def decide(low: float, high: float, agreeing: int, number: int) -> str:
    """Decide by an interval above or below 0, and by the share of ``number`` comparisons that agree."""
    if low > 0 and agreeing >= AGREE * number:
        return SUPPORTED
    if high < 0 and number - agreeing >= AGREE * number:
        return CONTRADICTED
    return NOT_DECIDED


def compare(evidence: Evidence, pairs: Sequence[Pair], what: str) -> Finding:
    """Judge a claim that the first of each pair is damaged more than the second.

    The interval is of the mean over pairs, from the resamples they share. At least ``AGREE`` of the pairs must go its
    way.
    """
    damages = [(evidence.damage(pair.first.name), evidence.damage(pair.second.name)) for pair in pairs]
    known = [(first, second) for first, second in damages if first is not None and second is not None]
    if not known:
        return Finding(NOT_MEASURED, f"no {what}")
    values = np.array([first.value - second.value for first, second in known])
    resampled = np.mean([first.replicates - second.replicates for first, second in known], axis=0)
    low, high = bootstrap.interval(resampled, evidence.spec.confidence, evidence.blocks())
    agreeing = int((values > 0).sum())
    measured = f"{agreeing} of {len(known)} comparisons of {what} go this way"
    verdict = decide(low, high, agreeing, len(known))
    unit = "mean difference of ln PPL"
    return Finding(verdict, measured, float(values.mean()), finite(low), finite(high), unit, len(known))


def methods_of(variants: Iterable[Variant]) -> list[str]:
    """List the methods of some variants once each, in their order."""
    return list(dict.fromkeys(variant.method for variant in variants))


def finite(value: float) -> float | None:
    """Return a finite number, or None."""
    return value if math.isfinite(value) else None
