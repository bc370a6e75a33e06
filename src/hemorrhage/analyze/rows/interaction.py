"""Measure whether compression costs some strategies more than others: differences of differences, paired by item.

d = a variant's outcome less the base model's, on one item under one strategy. Where compression costs every strategy
the same, a strategy's mean d is the mean over strategies; what it is more or less is the interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.rows.findings import careful
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats


@dataclass(frozen=True)
class Interaction:
    """``estimates``, ``low``, ``high``, ``p`` and ``mde``, the smallest that would have been seen, [strategies];
    ``size``, the root mean square of the estimates, and ``overall``, its p-value; ``items`` they rest on."""

    estimates: Floats
    low: Floats
    high: Floats
    p: Floats
    mde: Floats
    size: float
    overall: float
    items: int


def interaction(base: Floats, variant: Floats, dataset: str, spec: Spec, compared: int = 1) -> Interaction:
    """Compare outcomes ``[items, strategies]`` of the base model and of a variant; items without all are left out.

    Intervals: bootstrap over items. p of a strategy: random signs of the items' contrasts, corrected for all of them. p
    of all: the strategies' differences are exchangeable within an item if compression costs all of them the same, so
    they are shuffled there. mde: of a strategy in so many tables that are ``compared`` with as many strategies.
    """
    confidence = careful(spec, compared * variant.shape[1]).confidence
    differences = variant - base
    differences = differences[np.isfinite(differences).all(axis=1)]
    contrasts = differences - differences.mean(axis=1, keepdims=True)
    items = len(contrasts)
    counts = bootstrap.draws(dataset, items, spec.resamples, spec.seed)
    replicates = counts @ contrasts / items
    limits = [bootstrap.interval(column, spec.confidence, items) for column in replicates.T]
    estimates = contrasts.mean(axis=0)
    size = float(np.sqrt((estimates**2).mean()))
    generator = np.random.default_rng([spec.seed, 2])
    shuffled = np.array([generator.permuted(contrasts, axis=1).mean(axis=0) for _ in range(spec.resamples)])
    as_large = np.sqrt((shuffled**2).mean(axis=1)) >= size * (1 - 1e-12)
    return Interaction(
        estimates=estimates,
        low=np.array([low for low, _ in limits]),
        high=np.array([high for _, high in limits]),
        p=significance.largest_differences(contrasts, spec.seed),
        mde=np.array([significance.detectable_mean(each, np.ones(items), confidence) for each in contrasts.T]),
        size=size,
        overall=float((1 + as_large.sum()) / (1 + spec.resamples)),
        items=items,
    )
