"""Choose the points that are added between those of a sweep, and the variants that have to be confirmed.

On each curve the budget falls between the last point that is inside and the first that is outside. What lies between
them is worth making where it would be smaller than the smallest variant inside. The points that are predicted to use up
about two thirds of the limit come first, one of each curve in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hemorrhage.bracket.content import INSIDE, OUTSIDE, UNDECIDED, Addition, Bracket, CurveBracket, Screened
from hemorrhage.bracket.spec import Curve, Spec

PER_BIT = math.log(4)
"""Damage of rounding by one bit less, in ln: the square of a step that is twice as wide."""

PER_SHARE = 2.0
"""Power of the share that is removed by which damage grows, where a curve has one point."""

UNALTERED_BITS = 16.0
"""Where a model that is not quantized is put among bits."""

LEAST = 1e-9
"""Share of a limit that is taken for one of 0, or less."""

WANTED = -math.log(1.5)
"""ln of the predicted share of a limit that a point should have: nearer to the limit much text is needed to decide."""

HOPELESS = math.log(4)
"""ln of the predicted share of a limit above which a point is not worth making."""


@dataclass(frozen=True)
class Candidate:
    """A point that could be added: ``used`` is the predicted ln of the share of its limit, ``size`` predicted, too."""

    variant: str
    used: float
    size: float


def bracket(screened: Sequence[Screened], spec: Spec, failed: Mapping[str, str]) -> Bracket:
    """Choose what is added and confirmed of what was screened."""
    by_name = {each.variant: each for each in screened}
    smallest = _smallest_inside(screened)
    surveyed = [_survey(curve, by_name, smallest) for curve in spec.curves]
    chosen = _chosen([candidates for _, candidates in surveyed], spec.allowance)
    brackets = [_with_added(where, candidates, chosen) for where, candidates in surveyed]
    added = [
        Addition(name, curve.free[name].sweep, curve.free[name].values)
        for curve in spec.curves
        for name in curve.free
        if name in chosen
    ]
    return Bracket(
        windows=spec.windows,
        allowance=spec.allowance,
        screened=tuple(screened),
        curves=tuple(brackets),
        added=tuple(added),
        confirmed=(*_open(screened, smallest), *(each.variant for each in added)),
        failed=dict(failed),
    )


def _smallest_inside(screened: Sequence[Screened]) -> Screened | None:
    inside = [each for each in screened if each.could_ship and each.answer == INSIDE]
    return min(inside, key=lambda each: each.size, default=None)


def _open(screened: Sequence[Screened], smallest: Screened | None) -> list[str]:
    """Name the variants that may be picked: not outside, and no larger than the smallest inside; that is among them."""
    most = smallest.size if smallest else math.inf
    may = [each for each in screened if each.could_ship and each.answer != OUTSIDE and each.size <= most]
    return [each.variant for each in sorted(may, key=lambda each: each.size)]


def _survey(
    curve: Curve, screened: Mapping[str, Screened], smallest: Screened | None
) -> tuple[CurveBracket, list[Candidate]]:
    """Find where the budget falls on a curve, and what could be added there, the most promising first."""
    order = sorted((name for name in curve.listed if name in screened), key=curve.listed.__getitem__)
    points = [screened[name] for name in (reversed(order) if curve.falls else order)]
    outside = next((point for point in points if point.answer == OUTSIDE), None)
    before = points[: points.index(outside)] if outside else points
    inside = next((point for point in reversed(before) if point.answer == INSIDE), None)
    undecided = [point for point in before if point.answer == UNDECIDED]
    where = CurveBracket(
        curve=curve.name,
        axis=curve.axis,
        inside=inside.variant if inside else None,
        outside=outside.variant if outside else None,
        undecided=tuple(point.variant for point in undecided),
        added=(),
        reason="",
    )
    reason, candidates = _between(curve, points, where, smallest)
    return replace(where, reason=reason), candidates


def _between(
    curve: Curve, points: Sequence[Screened], where: CurveBracket, smallest: Screened | None
) -> tuple[str, list[Candidate]]:
    """Return the points worth adding to a curve, or why there is none."""
    if not points:
        return "none of its points was screened", []
    if not any(point.could_ship for point in points):
        return f"nothing of it could ship: {points[0].hindrance or 'it is no smaller than the base'}", []
    if where.outside is None:
        return "no point is outside", []
    end = curve.listed[where.outside]
    start = curve.listed[where.inside] if where.inside else (math.inf if curve.falls else 0.0)
    between = [name for name, free in curve.free.items() if min(start, end) < free.severity < max(start, end)]
    if not between:
        return "there is no step between", []
    candidates = [_predict(name, curve, points) for name in between]
    smaller = [each for each in candidates if smallest is None or each.size < smallest.size]
    if not smaller:
        return f"what lies between would be no smaller than {smallest.variant if smallest else 'the base'}", []
    hopeful = sorted((each for each in smaller if each.used < HOPELESS), key=lambda each: abs(each.used - WANTED))
    return ("" if hopeful else "what lies between would be outside, too"), hopeful


def _predict(name: str, curve: Curve, points: Sequence[Screened]) -> Candidate:
    """Predict the damage and the size of a point from those that were screened."""
    severity = curve.free[name].severity
    known = sorted((curve.listed[point.variant], math.log(max(point.used, LEAST)), point.size) for point in points)
    severities, used, sizes = ([point[column] for point in known] for column in range(3))
    # Damage of the unaltered model has no logarithm; its size is known.
    ends = sorted([*zip(severities, sizes, strict=True), (UNALTERED_BITS if curve.falls else 0.0, 1.0)])
    size = float(np.interp(severity, [end[0] for end in ends], [end[1] for end in ends]))
    if severities[0] <= severity <= severities[-1]:
        return Candidate(name, float(np.interp(severity, severities, used)), size)
    if curve.falls:
        return Candidate(name, used[-1] - PER_BIT * (severity - severities[-1]), size)
    return Candidate(name, used[0] + PER_SHARE * math.log(severity / severities[0]), size)


def _chosen(candidates: Sequence[Sequence[Candidate]], allowance: int) -> list[str]:
    """Take the candidates in turn, the best of each curve first, those of the smallest size before others."""
    turns = [(turn, each.size, each.variant) for of_curve in candidates for turn, each in enumerate(of_curve)]
    return [variant for _, _, variant in sorted(turns)[:allowance]]


def _with_added(where: CurveBracket, candidates: Sequence[Candidate], chosen: Sequence[str]) -> CurveBracket:
    added = tuple(each.variant for each in candidates if each.variant in chosen)
    reason = "the allowance was spent on other curves" if candidates and not added else where.reason
    return replace(where, added=added, reason=reason)
