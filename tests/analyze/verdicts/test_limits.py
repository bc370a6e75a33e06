"""Limits: one-sided, on measured points alone, by at least two methods."""

from __future__ import annotations

import math

import pytest

from hemorrhage.analyze.verdicts import limits
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED
from hemorrhage.analyze.verdicts.limits import Point


def curve(*points: tuple[float, float]) -> list[Point]:
    """Points of (position, times the base's perplexity), known to 1 %."""
    return [Point(x, math.log(times), math.log(0.99 * times), math.log(1.01 * times)) for x, times in points]


SOUND, BROKEN = (0.6, 1.4), (0.6, 5.0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.6, 1.4)], SUPPORTED),
        ([(0.7, 1.4)], SUPPORTED),  # what is fine at 70 % was fine at 60 %
        ([(0.57, 1.4)], SUPPORTED),  # near enough
        ([(0.6, 1.4), (0.72, 9.0)], SUPPORTED),  # a collapse beyond says nothing
        ([(0.72, 9.0)], NOT_MEASURED),
        ([(0.5, 1.1), (0.72, 9.0)], NOT_MEASURED),
        ([(0.6, 5.0)], CONTRADICTED),
        ([(0.3, 5.0)], CONTRADICTED),
        ([(0.6, 2.0)], NOT_MEASURED),  # at the line
        ([(0.3, 5.0), (0.6, 1.4)], NOT_MEASURED),  # it contradicts itself
    ],
)
def test_fine_up_to_a_share(points: list[tuple[float, float]], expected: str) -> None:
    both = {"a": curve(*points), "b": curve(*points)}
    assert limits.fine_up_to(both, 0.6, "pruning").verdict == expected


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 3.0)], SUPPORTED),
        ([(0.2, 3.0)], SUPPORTED),
        ([(0.4, 1.2), (0.54, 3.0)], SUPPORTED),
        ([(0.5, 1.5)], CONTRADICTED),
        ([(0.7, 1.5)], CONTRADICTED),
        ([(0.3, 1.5)], NOT_MEASURED),
        ([(0.7, 5.0)], NOT_MEASURED),  # it may have collapsed before
    ],
)
def test_collapsed_by_a_share(points: list[tuple[float, float]], expected: str) -> None:
    both = {"a": curve(*points), "b": curve(*points)}
    assert limits.collapsed_by(both, 0.5, "pruning").verdict == expected


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.3, 1.4), (0.4, 3.0)], SUPPORTED),
        ([(0.2, 3.0)], CONTRADICTED),
        ([(0.5, 1.5)], CONTRADICTED),
        ([(0.2, 1.4), (0.3, 3.0)], NOT_MEASURED),  # it may have doubled at 21 %
    ],
)
def test_between_two_shares(points: list[tuple[float, float]], expected: str) -> None:
    both = {"a": curve(*points), "b": curve(*points)}
    assert limits.collapses_between(both, 0.3, 0.45, "pruning").verdict == expected


def test_one_method_decides_nothing_and_two_that_disagree_neither() -> None:
    alone = limits.fine_up_to({"a": curve(SOUND)}, 0.6, "pruning")
    assert alone.verdict == NOT_DECIDED
    assert "2 are needed" in alone.measured
    assert limits.fine_up_to({"a": curve(SOUND), "b": curve(BROKEN)}, 0.6, "pruning").verdict == NOT_DECIDED
    several = {name: curve(SOUND) for name in "abcd"} | {"e": curve(BROKEN)}
    assert limits.fine_up_to(several, 0.6, "pruning").verdict == SUPPORTED
    assert limits.fine_up_to({}, 0.6, "pruning").measured.endswith("no method was measured")


def test_bits_are_those_that_are_stored() -> None:
    good = {"a": curve((-3.3, 1.3), (-2.3, 50)), "b": curve((-3.5, 1.2))}
    assert limits.bits(good).verdict == SUPPORTED
    # A "2-bit" file of 3.4 bits that works says that 3 bits are safe, and nothing of 2.
    assert limits.bits({**good, "c": curve((-3.4, 1.1))}).verdict == SUPPORTED
    assert limits.bits({**good, "c": curve((-2.4, 1.1))}).verdict == NOT_DECIDED
    assert limits.bits({"a": curve((-3.3, 3.0)), "b": curve((-4.3, 3.0), (-2.3, 50))}).verdict == CONTRADICTED
    assert limits.bits({"a": curve((-3.3, 1.3)), "b": curve((-3.3, 1.3))}).verdict == NOT_MEASURED
