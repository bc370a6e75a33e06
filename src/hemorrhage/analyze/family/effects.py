"""Groups of models against each other, and what an outcome moves with. A model, trained with a seed, is the unit.

The interval of a group is Student's over its models. Two groups are compared by Welch's test; of one outcome all pairs
share the error by Holm's rule. Text windows don't enter: how much an outcome would move with them is part of how much
it moves between seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hemorrhage.analyze.family.models import Gap, Model, groups
from hemorrhage.analyze.family.outcomes import INSIDE, LOSS, Outcome
from hemorrhage.analyze.stats.bootstrap import Floats, t_interval

LEAST = 3
"""Models of a group, below which it has no interval and is compared with no other."""

DIFFER, NO_DIFFERENCE, TOO_FEW = "differ", "no difference shown", "too few models"


@dataclass(frozen=True)
class Level:
    """The mean of a group in one outcome; NaN as ``low`` and ``high`` below three models. ``lacking``: models of it
    without a number, with the reason of the first."""

    group: str
    mean: float
    low: float
    high: float
    models: int
    lacking: int
    reason: str


@dataclass(frozen=True)
class Contrast:
    """The second group's mean minus the first's, with Welch's interval; ``p`` after Holm over the outcome's pairs."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Movement:
    """The slope of an outcome on ``factor`` over models (per tenfold where ``per_tenfold``), with Student's interval.

    ``beside_loss``: the same with the loss of the unaltered model as a second regressor, NaN where that can't be told
    from the factor; ``correlation`` of the two.
    """

    factor: str
    per_tenfold: bool
    slope: float
    low: float
    high: float
    p: float
    models: int
    beside_loss: float
    beside_low: float
    beside_high: float
    correlation: float


@dataclass(frozen=True)
class Disguise:
    """Whether groups differ in an outcome beyond what the loss of the unaltered model says: an F test of the groups in
    a model that has the loss, and of the loss in a model that has the groups. ``sentence`` is the answer."""

    groups_given_loss: float
    loss_given_groups: float
    sentence: str


@dataclass(frozen=True)
class Effect:
    """Everything about one outcome. ``least_seen``: the smallest difference of two groups that four of five such
    studies would show; of logarithms, as the outcome is. NaN where no two groups were compared."""

    outcome: Outcome
    levels: list[Level]
    contrasts: list[Contrast]
    movements: list[Movement]
    disguise: Disguise | None
    least_seen: float = math.nan


def effects(
    outcomes: Sequence[Outcome], models: Sequence[Model], confidence: float, gaps: Sequence[Gap] = ()
) -> list[Effect]:
    """Compare groups and regress on numeric factors in every outcome. ``gaps``: models that could not be made."""
    grouped = groups(models)
    numeric, losses = _numeric_factors(models), {model.name: model.loss for model in models}
    return [
        Effect(
            outcome,
            [_level(outcome, group, members, confidence, gaps) for group, members in grouped.items()],
            contrasts({group: outcome.known(members) for group, members in grouped.items()}, confidence),
            [
                movement
                for factor, values in numeric.items()
                if (movement := move(factor, outcome.values, values, losses, confidence)) is not None
            ],
            None if outcome.kind in (LOSS, INSIDE) else disguise(outcome, grouped, 1 - confidence),
            least_seen([outcome.known(members) for members in grouped.values()], confidence),
        )
        for outcome in outcomes
    ]


def _level(outcome: Outcome, group: str, members: Sequence[Model], confidence: float, gaps: Sequence[Gap]) -> Level:
    known = np.array(outcome.known(members))
    lacking = [model.name for model in members if not math.isfinite(outcome.values[model.name])]
    unmade = [gap.reason for gap in gaps if gap.group == group]
    reason = next(iter([*unmade, *(outcome.reasons.get(name, "") for name in lacking)]), "")
    without = len(lacking) + len(unmade)
    if not len(known):
        return Level(group, math.nan, math.nan, math.nan, 0, without, reason)
    return Level(group, float(known.mean()), *t_interval(known, confidence), len(known), without, reason)


def contrasts(values: Mapping[str, Sequence[float]], confidence: float) -> list[Contrast]:
    """Compare every two groups by Welch's test, with Holm's correction over the pairs that can be compared."""
    pairs = list(itertools.combinations(values, 2))
    tested = {pair: _welch(np.array(values[pair[0]]), np.array(values[pair[1]]), confidence) for pair in pairs}
    p = {pair: welch[3] for pair, welch in tested.items() if welch is not None}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    made = []
    for (first, second), welch in tested.items():
        if welch is None:
            means = [float(np.mean(values[group])) if len(values[group]) else math.nan for group in (first, second)]
            made.append(Contrast(first, second, means[1] - means[0], math.nan, math.nan, math.nan, TOO_FEW))
            continue
        difference, low, high, _ = welch
        q = adjusted[first, second]
        made.append(Contrast(first, second, difference, low, high, q, DIFFER if q < 1 - confidence else NO_DIFFERENCE))
    return made


def _welch(first: Floats, second: Floats, confidence: float) -> tuple[float, float, float, float] | None:
    """Return difference, interval and p; None with fewer than three of one, or without any spread."""
    if min(len(first), len(second)) < LEAST:
        return None
    errors = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    error = math.sqrt(sum(errors))
    difference = float(second.mean() - first.mean())
    if error == 0:
        return None
    freedom = sum(errors) ** 2 / sum(e**2 / (len(v) - 1) for e, v in zip(errors, (first, second), strict=True))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return difference, difference - half, difference + half, float(2 * stats.t.sf(abs(difference) / error, freedom))


POWER = 0.8


def least_seen(groups: Sequence[Sequence[float]], confidence: float) -> float:
    """Return the difference of two groups that is shown with a probability of POWER, at Holm's strictest level.

    By the spread inside the groups, pooled, and the sizes of the two smallest that can be compared: the quantile of the
    t distribution at the level plus that at the power, times the error of a difference. Their freedom is that of the
    test, of two groups alone.
    """
    known = [np.array(values) for values in groups if len(values) >= LEAST]
    if len(known) < 2:
        return math.nan
    freedom = sum(len(values) - 1 for values in known)
    variance = sum(float(np.sum((values - values.mean()) ** 2)) for values in known) / freedom
    first, second = sorted(len(values) for values in known)[:2]
    level = (1 - confidence) / math.comb(len(known), 2)
    of_pair = first + second - 2
    quantiles = float(stats.t.ppf(1 - level / 2, of_pair) + stats.t.ppf(POWER, of_pair))
    return quantiles * math.sqrt(variance * (1 / first + 1 / second))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given."""
    order = np.argsort(p)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _numeric_factors(models: Sequence[Model]) -> dict[str, dict[str, float]]:
    """Return the numeric factors, and the number of parameters, that take at least three values."""
    factors: dict[str, dict[str, float]] = {}
    for model in models:
        numeric = {key: value for key, value in model.factors.items() if key != "seed"}
        for key, value in {**numeric, "parameters": model.facts.get("parameters", math.nan)}.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                factors.setdefault(key, {})[model.name] = float(value)
    return {key: values for key, values in factors.items() if len(set(values.values())) >= LEAST}


def move(
    factor: str,
    outcome: Mapping[str, float],
    values: Mapping[str, float],
    losses: Mapping[str, float],
    confidence: float,
) -> Movement | None:
    """Regress an outcome on a factor, and on it beside the loss; None where fewer than four models have both."""
    names = [name for name in values if math.isfinite(outcome[name])]
    if len({values[name] for name in names}) < LEAST or len(names) <= LEAST:
        return None
    x, y = np.array([values[name] for name in names]), np.array([outcome[name] for name in names])
    tenfold = bool(x.min() > 0 and x.max() >= 4 * x.min())
    x = np.log10(x) if tenfold else x
    steepness, low, high, p = slope(np.column_stack([x]), y, confidence)
    loss = np.array([losses[name] for name in names])
    beside, correlation = (math.nan, math.nan, math.nan), math.nan
    if np.isfinite(loss).all() and loss.std() > 0:
        correlation = float(np.corrcoef(x, loss)[0, 1])
        if abs(correlation) < SAME and len(names) > LEAST + 1:
            beside = slope(np.column_stack([x, loss]), y, confidence)[:3]
    return Movement(factor, tenfold, steepness, low, high, p, len(names), *beside, correlation)


SAME = 0.95
"""Correlation of a factor with the loss, above which one can't be told from the other."""


def slope(x: Floats, y: Floats, confidence: float) -> tuple[float, float, float, float]:
    """Return the first regressor's coefficient with its interval and p, beside a constant."""
    # Around the means: a count of parameters beside a constant is singular in double precision, and pinv drops it.
    design = np.column_stack([x - x.mean(axis=0), np.ones(len(y))])
    solved, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - design.shape[1]
    left = y - design @ solved
    error = math.sqrt(max(float(left @ left), 0.0) / freedom * float(np.linalg.pinv(design.T @ design)[0, 0]))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(solved[0]) / error, freedom)) if error else 0.0
    return float(solved[0]), float(solved[0]) - half, float(solved[0]) + half, p


def disguise(outcome: Outcome, grouped: Mapping[str, Sequence[Model]], level: float) -> Disguise | None:
    """Ask whether groups differ beyond their models' loss; None with one group or too few models."""
    rows = [
        (place, model.loss, outcome.values[model.name])
        for place, members in enumerate(grouped.values())
        for model in members
        if math.isfinite(outcome.values[model.name]) and math.isfinite(model.loss)
    ]
    present = sorted({place for place, _, _ in rows})
    if len(present) < 2 or len(rows) < len(present) + LEAST:
        return None
    y, loss = np.array([row[2] for row in rows]), np.array([row[1] for row in rows])
    dummies = np.array([[float(row[0] == place) for place in present] for row in rows])
    ones = np.ones((len(rows), 1))
    both = np.column_stack([dummies, loss])
    groups_p = _f_test(both, np.column_stack([ones, loss]), y)
    loss_p = _f_test(both, dummies, y)
    alone = _f_test(dummies, ones, y)
    return Disguise(groups_p, loss_p, _sentence(alone < level, groups_p < level, loss_p < level))


def _sentence(differ: bool, beyond: bool, by_loss: bool) -> str:
    if beyond:
        return "groups differ beyond what the loss of their unaltered models says"
    if differ and by_loss:
        return "groups differ as the loss of their unaltered models does: training loss in disguise is not excluded"
    if differ:
        return "groups differ, and group and loss can't be told apart here"
    return "no difference of groups was shown"


def _f_test(full: Floats, reduced: Floats, y: Floats) -> float:
    """Return the p-value of the F test of a full against a nested linear model."""
    left = [float(np.sum((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2)) for design in (full, reduced)]
    ranks = [int(np.linalg.matrix_rank(design)) for design in (full, reduced)]
    extra, freedom = ranks[0] - ranks[1], len(y) - ranks[0]
    if extra <= 0 or freedom <= 0 or left[0] <= 0:
        return math.nan
    return float(stats.f.sf((left[1] - left[0]) / extra / (left[0] / freedom), extra, freedom))
