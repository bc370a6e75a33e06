"""Compare how steady two models' accuracies are over decoding strategies.

The statistic is the coefficient of variation of the accuracies over strategies. Strategies of one model answer the
same items, so their accuracies are no independent draws, which Brown and Forsythe's test (1974, doi
10.1080/01621459.1974.10482955) assumes; the verdict therefore rests on a bootstrap over the items that both models
answered, and Brown and Forsythe's p-value is given next to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats


@dataclass(frozen=True)
class Stability:
    """``first`` and ``second``: coefficients of variation; ``difference``, of the second less the first, with its
    interval; ``by_chance``: what the coefficients would be if an item's outcomes were shuffled among the strategies;
    ``brown_forsythe``: p-value; ``items``, ``strategies``."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    by_chance: tuple[float, float]
    brown_forsythe: float
    items: int
    strategies: int

    @property
    def verdict(self) -> str:
        """What the interval says of the second model: ``steadier``, ``less steady`` or ``inconclusive``."""
        if self.high < 0:
            return "steadier"
        return "less steady" if self.low > 0 else "inconclusive"


def variation(accuracies: Floats) -> Floats:
    """Return the standard deviation over the mean of ``[..., strategies]``; NaN where nothing is right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(accuracies.std(axis=-1) / accuracies.mean(axis=-1))


def compare(first: Floats, second: Floats, dataset: str, spec: Spec) -> Stability | None:
    """Compare outcomes 0 or 1 ``[items, strategies]`` of two models on the same items and strategies.

    None where there are fewer than 2 items or strategies, or a model gets too little right for an interval.
    """
    items, strategies = first.shape
    before, after = (float(variation(right.mean(axis=0))) for right in (first, second))
    if min(items, strategies) < 2 or not (math.isfinite(before) and math.isfinite(after)):
        return None
    counts = bootstrap.draws(dataset, items, spec.resamples, spec.seed)
    replicates = variation(counts @ second / items) - variation(counts @ first / items)
    # Resampling adds noise to both spreads, more to that of the model that is right less often.
    replicates = replicates - np.nanmean(replicates) + (after - before)
    low, high = bootstrap.interval_of_ratio(replicates, spec.confidence, items)
    if math.isnan(low):
        return None
    generator = np.random.default_rng([spec.seed, 3])
    shuffled = [
        np.nanmean([variation(generator.permuted(right, axis=1).mean(axis=0)) for _ in range(200)])
        for right in (first, second)
    ]
    accuracies = [right.mean(axis=0) for right in (first, second)]
    all_equal = all(np.ptp(of_model) == 0 for of_model in accuracies)
    p = math.nan if all_equal else float(stats.levene(*accuracies, center="median").pvalue)
    return Stability(
        first=before,
        second=after,
        difference=after - before,
        low=low,
        high=high,
        by_chance=(float(shuffled[0]), float(shuffled[1])),
        brown_forsythe=p,
        items=items,
        strategies=strategies,
    )
