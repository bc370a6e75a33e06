"""Whether how redundant a model is foretells how it bears damage: a rank correlation over the models of a study.

How a model bears damage is the mean over variants of ln KL, each less its mean over the models. Groups differ in much,
so that the same is asked inside them: of what is left when each model's numbers are less its group's mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hemorrhage.analyze.family.models import Model, groups
from hemorrhage.analyze.family.outcomes import DAMAGE, INSIDE, Outcome
from hemorrhage.analyze.stats.bootstrap import Floats

LEAST = 5
"""Models below which a rank correlation can't reach 5 % whatever their order."""


@dataclass(frozen=True)
class Relation:
    """Spearman's correlation of a diagnostic of the unaltered model with its damage over ``models``,
    and inside groups."""

    measure: str
    correlation: float
    p: float
    inside: float
    inside_p: float
    models: int


def relations(outcomes: Sequence[Outcome], models: Sequence[Model]) -> list[Relation]:
    """Correlate each diagnostic with the damage of all variants together; none with fewer than five models."""
    damages = [each for each in outcomes if each.kind == DAMAGE and all(map(math.isfinite, each.values.values()))]
    if not damages or len(models) < LEAST:
        return []
    names = [model.name for model in models]
    damage = np.mean([_less_mean(np.array([each.values[name] for name in names])) for each in damages], axis=0)
    members = [[names.index(model.name) for model in group] for group in groups(models).values()]
    related = []
    for each in outcomes:
        values = np.array([each.values[name] for name in names])
        if each.kind == INSIDE and np.isfinite(values).all() and np.ptp(values) > 0:
            inside = _spearman(_inside(values, members), _inside(damage, members))
            related.append(Relation(each.measure, *_spearman(values, damage), *inside, len(names)))
    return related


def _less_mean(values: Floats) -> Floats:
    return values - float(values.mean())


def _inside(values: Floats, members: Sequence[Sequence[int]]) -> Floats:
    return np.concatenate([_less_mean(values[places]) for places in members if len(places) > 1] or [np.empty(0)])


def _spearman(first: Floats, second: Floats) -> tuple[float, float]:
    if len(first) < LEAST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan
    result = stats.spearmanr(first, second)
    return float(result.statistic), float(result.pvalue)
