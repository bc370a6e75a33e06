"""How far accuracies differ between decoding strategies without the noise of items; which of two models is steadier.

Strategies of one model answer the same items. x_is is the outcome of item i under strategy s, c_i its contrasts: x_is
less the item's mean over strategies. The variance between S strategies is the sum of squares of E c_i over S - 1, and

    U = sum over pairs of different items of <c_i, c_j> / (n (n - 1) (S - 1))

estimates it without bias, whatever the strategies have in common (Hoeffding 1948, doi 10.1214/aoms/1177730196). It is
the mean square between strategies less the residual one, over n items. A maximum less a minimum grows with the number
of strategies, and with fewer items, where none differs; U does not, since the noise of an item never meets itself.

Resamples count items; a copy of an item does not meet itself either, so that they have no bias of their own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import integrate, stats

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

LEAST_CHANGE = 0.05
"""Smallest difference of two coefficients of variation that matters."""


@dataclass(frozen=True)
class Spread:
    """How far strategies differ: ``sd``, the standard deviation of their accuracies, 0 where noise explains it all.

    ``relative``: (max - min) / max that so many strategies of this deviation have on average, the spread that printed
    tables give, with its interval ``low``, ``high``. ``p``: an item's outcomes shuffled among the strategies.
    """

    sd: float
    sd_low: float
    sd_high: float
    relative: float
    low: float
    high: float
    variation: float
    p: float
    items: int
    strategies: int


@dataclass(frozen=True)
class Stability:
    """``first`` and ``second``: coefficients of variation without noise; ``difference``, of the second less the first,
    with its interval; ``mde``: the smallest difference that would have been seen; ``items``, ``strategies``."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    mde: float
    items: int
    strategies: int

    @property
    def verdict(self) -> str:
        """Whether the second model is ``steadier``, ``less steady``, or why that is not known."""
        if self.high < 0:
            return "steadier"
        if self.low > 0:
            return "less steady"
        return "inconclusive" if self.mde <= LEAST_CHANGE else "no power"


def center(outcomes: Floats) -> Floats:
    """Return the contrasts of outcomes ``[items, strategies]``."""
    return np.asarray(outcomes - outcomes.mean(axis=1, keepdims=True))


def variances(counts: Integers, contrasts: Floats) -> Floats:
    """Return U ``[samples]`` of items that are counted ``counts`` ``[samples, items]`` times."""
    strategies = contrasts.shape[1]
    own = counts.astype(np.float64) ** 2
    pairs = counts.sum(axis=1) ** 2 - own.sum(axis=1)
    met = ((counts @ contrasts) ** 2).sum(axis=1) - own @ (contrasts**2).sum(axis=1)
    # A resample of one item alone has no pair.
    return np.asarray(met / np.maximum(pairs, 1) / (strategies - 1))


@functools.cache
def expected_range(strategies: int) -> float:
    """Return the mean of the largest less the smallest of so many draws from a normal of deviation 1."""

    def outside(x: float) -> float:
        below = float(stats.norm.cdf(x))
        return 1 - below**strategies - (1 - below) ** strategies

    return float(integrate.quad(outside, -10, 10)[0])


def relative(sd: Floats, mean: Floats, strategies: int) -> Floats:
    """Return (max - min) / max of so many strategies around ``mean``, at most 1; NaN where nothing is right."""
    span = expected_range(strategies) * sd
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.minimum(span / (mean + span / 2), 1.0)


def spread(outcomes: Floats, dataset: str, spec: Spec) -> Spread | None:
    """Measure the spread of outcomes ``[items, strategies]``; None for fewer than 2 items or strategies."""
    items, strategies = outcomes.shape
    if min(items, strategies) < 2:
        return None
    contrasts = center(outcomes)
    counts = bootstrap.draws(dataset, items, spec.resamples, spec.seed)
    once = np.ones((1, items), dtype=np.int64)
    sd, replicates = (np.sqrt(np.maximum(variances(each, contrasts), 0.0)) for each in (once, counts))
    mean, means = outcomes.mean(), counts @ outcomes.mean(axis=1) / items
    sd_low, sd_high = bootstrap.interval(replicates, spec.confidence, items)
    low, high = bootstrap.interval_of_ratio(relative(replicates, means, strategies), spec.confidence, items)
    return Spread(
        sd=float(sd[0]),
        sd_low=sd_low,
        sd_high=sd_high,
        relative=float(relative(sd, np.array([mean]), strategies)[0]),
        low=low,
        high=high,
        variation=float(sd[0] / mean) if mean else math.nan,
        p=shuffled(contrasts, spec),
        items=items,
        strategies=strategies,
    )


ENOUGH = 100
"""Shuffles that differ as much as what was measured, after which no more are made."""


def shuffled(contrasts: Floats, spec: Spec) -> float:
    """p-value of differences between strategies: an item's outcomes are exchangeable where none differs."""
    generator = np.random.default_rng([spec.seed, 3])
    reached = float((contrasts.mean(axis=0) ** 2).sum()) * (1 - 1e-12)
    as_large = shuffles = 0
    # As many as a small p-value takes; after ENOUGH that are as large it is not small (Besag and Clifford 1991).
    while shuffles < significance.FLIPS and as_large < ENOUGH:
        shuffles += 1
        as_large += float((generator.permuted(contrasts, axis=1).mean(axis=0) ** 2).sum()) >= reached
    return (1 + as_large) / (1 + shuffles)


def variations(counts: Integers, outcomes: Floats) -> Floats:
    """Return coefficients of variation without noise ``[samples]``; NaN where nothing is right."""
    sd = np.sqrt(np.maximum(variances(counts, center(outcomes)), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sd / (counts @ outcomes.mean(axis=1) / counts.sum(axis=1)))


def compare(first: Floats, second: Floats, dataset: str, spec: Spec) -> Stability | None:
    """Compare outcomes ``[items, strategies]`` of two models on the same items and strategies, resampled together.

    None where there are fewer than 2 items or strategies, or a model gets too little right for an interval.
    """
    items, strategies = first.shape
    if min(items, strategies) < 2:
        return None
    once = np.ones((1, items), dtype=np.int64)
    before, after = (float(variations(once, outcomes)[0]) for outcomes in (first, second))
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    counts = bootstrap.draws(dataset, items, spec.resamples, spec.seed)
    replicates = variations(counts, second) - variations(counts, first)
    low, high = bootstrap.interval_of_ratio(replicates, spec.confidence, items)
    if math.isnan(low):
        return None
    # Of a normal whose interval is as wide: so many standard errors are found four times out of five.
    tail = float(stats.norm.ppf((1 + spec.confidence) / 2))
    error = (high - low) / 2 / tail
    return Stability(
        first=before,
        second=after,
        difference=after - before,
        low=low,
        high=high,
        mde=(tail + float(stats.norm.ppf(significance.POWER))) * error,
        items=items,
        strategies=strategies,
    )
