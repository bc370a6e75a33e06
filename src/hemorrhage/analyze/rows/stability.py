"""Is one model's accuracy steadier over decoding strategies than another's?

The statistic is the coefficient of variation of the accuracies over strategies. Strategies of one model answer the
same items, so their accuracies are no independent draws, which Brown and Forsythe's test (1974, doi
10.1080/01621459.1974.10482955) assumes; the verdict therefore rests on a bootstrap over the items that both models
answered, and Brown and Forsythe's p-value is given beside it.
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
        """What the interval says of the second model: ``steadier``, ``less steady`` or ``not told apart``."""
        if self.high < 0:
            return "steadier"
        return "less steady" if self.low > 0 else "not told apart"


def variation(accuracies: Floats) -> Floats:
    """Standard deviation over mean of ``[..., strategies]``; NaN where nothing is right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(accuracies.std(axis=-1) / accuracies.mean(axis=-1))


def compare(first: Floats, second: Floats, dataset: str, spec: Spec) -> Stability | None:
    """Of outcomes 0 or 1 ``[items, strategies]`` of two models on the same items and strategies.

    None where there are fewer than 2 items or strategies, or a model gets too little right for an interval.
    """
    items, strategies = first.shape
    found = [float(variation(right.mean(axis=0))) for right in (first, second)]
    if min(items, strategies) < 2 or not all(map(math.isfinite, found)):
        return None
    counts = bootstrap.draws(dataset, items, spec.resamples, spec.seed)
    replicates = variation(counts @ second / items) - variation(counts @ first / items)
    # Resampling adds noise to both spreads, more to that of the model that is right less often.
    replicates = replicates - np.nanmean(replicates) + (found[1] - found[0])
    low, high = bootstrap.interval_of_ratio(replicates, spec.confidence, items)
    if math.isnan(low):
        return None
    generator = np.random.default_rng([spec.seed, 3])
    shuffled = [
        np.nanmean([variation(generator.permuted(right, axis=1).mean(axis=0)) for _ in range(200)])
        for right in (first, second)
    ]
    accuracies = [right.mean(axis=0) for right in (first, second)]
    alike = all(np.ptp(one) == 0 for one in accuracies)
    p = math.nan if alike else float(stats.levene(*accuracies, center="median").pvalue)
    return Stability(
        first=found[0],
        second=found[1],
        difference=found[1] - found[0],
        low=low,
        high=high,
        by_chance=(float(shuffled[0]), float(shuffled[1])),
        brown_forsythe=p,
        items=items,
        strategies=strategies,
    )
