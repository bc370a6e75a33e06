"""Claims of how far an alteration may go, judged on measured points alone.

A curve is a method's points: a position and ln of the perplexity over the base's, with its interval. A point is *lost*
where it is surely above twice the base's perplexity, *fine* where it is surely below. Damage grows along a curve, so a
lost point says that all beyond are lost, a fine one that all before it are fine. Nothing is interpolated. Each claim is
decided on its own side: "fine up to 60 %" is not contradicted by a collapse at 72 %, and not supported by one either.

A method counts once. What its points leave open, or contradict, decides nothing. The same rules judge the tables that
the claims' authors published (hemorrhage.analyze.verdicts.published).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hemorrhage.analyze.verdicts.evidence import (
    AGREE,
    CONTRADICTED,
    LEAST_METHODS,
    NOT_DECIDED,
    NOT_MEASURED,
    SUPPORTED,
    Finding,
)

DOUBLED = math.log(2)

NEAR = 0.05
"""A point may lie so far from a claimed share."""

ROUNDING = 1e-6


@dataclass(frozen=True)
class Point:
    """Damage at position ``x`` of a curve, which grows with damage: ln of perplexity over the base's."""

    x: float
    value: float
    low: float
    high: float

    @classmethod
    def printed(cls, x: float, perplexity: float, base: float) -> Point:
        """Return a point of a printed table, which has no interval."""
        ratio = math.log(perplexity / base)
        return cls(x, ratio, ratio, ratio)

    @property
    def is_lost(self) -> bool:
        """Whether the perplexity is surely above twice the base's."""
        return self.low > DOUBLED

    @property
    def is_fine(self) -> bool:
        """Whether it is surely below."""
        return self.high < DOUBLED


Curves = Mapping[str, Sequence[Point]]
"""Method -> its points."""


def _lost_at(points: Sequence[Point], most: float) -> bool:
    return any(point.is_lost and point.x <= most + ROUNDING for point in points)


def _fine_at(points: Sequence[Point], least: float) -> bool:
    return any(point.is_fine and point.x >= least - ROUNDING for point in points)


def fine_up_to(curves: Curves, share: float, what: str, least_methods: int = LEAST_METHODS) -> Finding:
    """Judge "fine up to a share": a fine point from there on (give or take NEAR), or a lost one up to there."""

    def side(points: Sequence[Point]) -> bool | None:
        return _one_of(_fine_at(points, share - NEAR), _lost_at(points, share))

    return _judge(curves, side, f"{what}: below twice the perplexity at {_percent(share)}", least_methods)


def collapsed_by(curves: Curves, share: float, what: str, least_methods: int = LEAST_METHODS) -> Finding:
    """Judge "collapsed by a share": a lost point up to there (give or take NEAR), or a fine one from there on."""

    def side(points: Sequence[Point]) -> bool | None:
        lost = _lost_at(points, share + NEAR)
        return _one_of(lost, _fine_at(points, share + NEAR if lost else share))

    return _judge(curves, side, f"{what}: above twice the perplexity at {_percent(share)}", least_methods)


def collapses_between(
    curves: Curves, first: float, last: float, what: str, least_methods: int = LEAST_METHODS
) -> Finding:
    """Judge "collapses between two shares": fine at the first and lost at the last, give or take NEAR."""

    def side(points: Sequence[Point]) -> bool | None:
        inside = _fine_at(points, first - NEAR) and _lost_at(points, last + NEAR)
        return _one_of(inside, _lost_at(points, first - NEAR) or _fine_at(points, last + NEAR))

    where = f"between {_percent(first)} and {_percent(last)}"
    return _judge(curves, side, f"{what}: the perplexity doubles {where}", least_methods)


def bits(curves: Curves, safe: float = 3.0) -> Finding:
    """Judge "safe down to 3 bits, and collapses below", by the bits that a layer's weights take, scales included.

    ``curves``: positions are bits with a minus sign. The first half is of methods with a point of 3 to 4 bits, the
    second, for which one method is enough, of those with one below 3.
    """

    def is_safe(points: Sequence[Point]) -> bool | None:
        there = [point for point in points if point.x <= -safe + ROUNDING]
        return _one_of(_fine_at(there, -safe - 1 + 2 * ROUNDING), _lost_at(there, -safe))

    def is_gone(points: Sequence[Point]) -> bool | None:
        below = [point for point in points if point.x > -safe + ROUNDING]
        return _one_of(_lost_at(below, math.inf), _fine_at(below, -math.inf))

    upper = _judge(curves, is_safe, f"quantization: below twice the perplexity with {safe:g} to {safe + 1:g} bits")
    lower = _judge(curves, is_gone, f"above it with fewer than {safe:g}", 1)
    measured = f"{upper.measured}; {lower.measured}"
    verdicts = {upper.verdict, lower.verdict}
    verdict = next((each for each in (CONTRADICTED, NOT_MEASURED, NOT_DECIDED) if each in verdicts), SUPPORTED)
    return Finding(verdict, measured, comparisons=upper.comparisons + lower.comparisons)


def _one_of(yes: bool, no: bool) -> bool | None:
    """Return what the points say; None where they say nothing, or both."""
    return None if yes == no else yes


def _judge(
    curves: Curves, side: Callable[[Sequence[Point]], bool | None], what: str, least_methods: int = LEAST_METHODS
) -> Finding:
    sides = {method: side(points) for method, points in curves.items()}
    with_it = [method for method, answer in sides.items() if answer is True]
    against = [method for method, answer in sides.items() if answer is False]
    number = len(with_it) + len(against)
    if number == 0:
        reason = "no method was measured" if not curves else f"the points of {', '.join(curves)} leave it open"
        return Finding(NOT_MEASURED, f"{what}: {reason}")
    parts = [f"{word} {', '.join(names)}" for word, names in (("holds for", with_it), ("not for", against)) if names]
    unclear = [method for method, answer in sides.items() if answer is None]
    if unclear:
        parts.append(f"open for {', '.join(unclear)}")
    verdict = NOT_DECIDED
    if number >= least_methods and len(with_it) >= AGREE * number:
        verdict = SUPPORTED
    elif number >= least_methods and len(against) >= AGREE * number:
        verdict = CONTRADICTED
    elif number < least_methods:
        parts.append(f"{number} method decides nothing, {least_methods} are needed")
    return Finding(verdict, f"{what} {'; '.join(parts)}", comparisons=number)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
