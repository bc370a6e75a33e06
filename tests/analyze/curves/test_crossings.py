"""Bounds of a level's crossing against curves that are known between their points."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from hemorrhage.analyze.curves import crossings
from hemorrhage.analyze.stats.bootstrap import Floats

LAST = math.log(49152)
"""What chance leaves of a vocabulary: no damage is larger for long."""

CURVES: dict[str, Callable[[Floats], Floats]] = {
    "line": lambda x: 3 * x,
    "cube": lambda x: 8 * x**3,
    "exponential": lambda x: 0.02 * np.expm1(8 * x),
    "root": lambda x: 3 * np.sqrt(x),
    "knee": lambda x: 0.3 * x + 9 * np.maximum(x - 0.43, 0),
    "logistic": lambda x: LAST * (1 / (1 + np.exp(-18 * (x - 0.55))) - 1 / (1 + math.exp(18 * 0.55))),
    "hill": lambda x: LAST * x**5 / (0.5**5 + x**5),
    "gompertz": lambda x: LAST * (np.exp(-4 * np.exp(-4 * x)) - math.exp(-4)),
    "log-normal": lambda x: LAST * stats.lognorm.cdf(x, 0.4, scale=0.5),
    "saturating power": lambda x: LAST * -np.expm1(-((x / 0.6) ** 4)),
}
"""Damage that does not fall, and grows faster up to one place and slower after it."""

GRIDS = ([0.3, 0.5, 0.6, 0.7], [0.1, 0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.25, 0.5, 0.75])


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("grid", GRIDS, ids=len)
def test_bounds_hold_every_curve_of_their_kind(name: str, grid: list[float]) -> None:
    curve, x = CURVES[name], np.array([0.0, *grid])
    y = curve(x)
    for level in np.linspace(0.02, 0.98, 60) * y[-1]:
        place = optimize.brentq(lambda at, level=level: float(curve(np.array(at))) - level, 0, x[-1])
        found = crossings.bounds(x, y[None, :], level)
        assert found.near[0] - 1e-9 <= place <= found.far[0] + 1e-9
        assert found.near[0] - 1e-9 <= crossings.estimate(x, y, level) <= found.far[0] + 1e-9


def test_bounds_are_those_of_straight_lines_drawn_by_hand() -> None:
    # Slopes 1, 2, 5 and 9: the level 2 lies below the chord from (1, 1) to (2, 3) and above the line back from (2, 3).
    x = np.arange(5.0)
    y = np.array([[0, 1, 3, 8, 17.0]])
    found = crossings.bounds(x, y, 2.0)
    assert (found.near[0], found.far[0]) == pytest.approx((1.5, 1.8))
    # In the gap after it a line of slope 2 from (2, 3) bounds it, too, and that of slope 9 back from (3, 8).
    found = crossings.bounds(x, y, 5.0)
    assert (found.near[0], found.far[0]) == pytest.approx((2.4, 3.0))
    # The last gap may hold the place from which damage slows down.
    found = crossings.bounds(x, y, 9.0)
    assert (found.near[0], found.far[0]) == pytest.approx((3.0, 3.2))


def test_a_gap_at_the_base_is_bounded_by_its_ends() -> None:
    found = crossings.bounds(np.arange(4.0), np.array([[0, 1, 3, 8.0]]), 0.5)
    assert (found.near[0], found.far[0]) == (0.0, 1.0)


def test_a_curve_that_never_reaches_a_level_has_no_bounds() -> None:
    x, y = np.arange(3.0), np.array([[0, 0.1, 0.2], [0, 0.1, 2.0]])
    found = crossings.bounds(x, y, 1.0)
    assert np.isinf([found.near[0], found.far[0]]).all()
    assert (found.near[1], found.far[1]) == (1.0, 2.0)
    assert math.isinf(crossings.estimate(x, y[0], 1.0))


def test_damage_that_falls_again_is_crossed_where_it_first_reaches_the_level() -> None:
    x, y = np.arange(5.0), np.array([0, 0.2, 2.0, 0.5, 3.0])
    assert 1 < crossings.estimate(x, y, 1.0) < 2
    assert crossings.bounds(x, y[None, :], 1.0).near[0] == 1.0


def test_an_exponential_is_estimated_closer_than_by_a_chord() -> None:
    curve, x = CURVES["exponential"], np.array([0, 0.2, 0.4, 0.6, 0.8])
    level = float(curve(np.array(0.5)))
    chord = np.interp(level, curve(x), x)
    assert abs(crossings.estimate(x, curve(x), level) - 0.5) < 0.5 * abs(chord - 0.5)


def test_ends_move_outwards_to_what_a_setting_can_be() -> None:
    steps = np.array([0.0, 1.0, 2.0, 3.0])
    assert crossings.widen(1.2, 1.4, steps) == (1.0, 2.0)
    assert crossings.widen(1.0, 2.0, steps) == (1.0, 2.0)
    assert crossings.widen(0.5, 3.5, steps) == (0.0, math.inf)
