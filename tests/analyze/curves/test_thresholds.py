"""Thresholds on simulated curves whose knee is known, on straight lines, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.coverage import (
    BEGIN,
    DOCS,
    DRAWS,
    END,
    GRIDS,
    OTHERS,
    SMOOTH,
    broken,
    covers,
    false_knees,
    holds,
    insert,
    measured,
)

from hemorrhage.analyze.curves import thresholds
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, Threshold
from hemorrhage.analyze.curves.shapes import Shape
from hemorrhage.analyze.curves.thresholds import PHASES, TWO_SEGMENTS, Curve, FittedCurve
from hemorrhage.analyze.stats.bootstrap import Floats

BLOCKS = 48


def exact(x: list[float], y: list[float]) -> Curve:
    return thresholds.make_curve(np.array(x), np.array(y), np.tile(y, (50, 1)), BLOCKS)


def knee(found: Curve, among: tuple[Shape, ...] = TWO_SEGMENTS) -> Threshold:
    return FittedCurve(found, 0.95, 0).knee(among)


# Knees.


def test_intervals_cover_known_knees_as_often_as_they_say() -> None:
    """``python -m benchmarks.coverage`` has more curves, and the power at each number of points."""
    rng = np.random.default_rng(1)
    x, covered, placed = np.arange(1, 9) / 10, [], []
    for turn in range(24):
        place = float(rng.uniform(0.4, 0.5))
        judged = FittedCurve(measured(rng, x, broken(place)(x), 0.02, (0.0, 0.02)[turn % 2]), 0.95, turn)
        covered.append(holds(*judged.limits(TWO_SEGMENTS), place))
        placed.append(judged.knee(TWO_SEGMENTS).is_located)
    assert np.mean(placed) >= 0.6
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize("grid", GRIDS, ids=len)
def test_smooth_curves_are_given_a_knee_at_most_one_time_in_twenty(grid: list[float]) -> None:
    given = [false_knees(damage, grid, 2, 7) for damage in (SMOOTH | OTHERS).values()]
    for definition in ("knee", "phase_point", "anchored_point"):
        assert np.mean([shares[definition] for shares in given]) <= 0.05


def test_damage_that_saturates_is_described_as_such() -> None:
    rng = np.random.default_rng(3)
    x = np.arange(1, 9) / 10
    fit = FittedCurve(measured(rng, x, SMOOTH["logistic"](x), 0.02, 0.0), 0.95, 0).best()
    assert fit.shape in ("logistic", "richards", "hill", "saturating_power", "line_logistic")
    assert fit.y[0] == 0
    assert fit.x[-1] == 0.8


def test_tables_are_put_between_their_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert insert(page, "| new |") == f"before\n{BEGIN}\n| new |\n{END}\nafter"
    tables = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert "python -m benchmarks.coverage" in tables
    assert all(f"| {name}" in tables for name in (*SMOOTH, *OTHERS, *DRAWS))


def test_a_few_points_that_fit_both_ways_are_not_enough() -> None:
    # Quantization at 8, 4, 3 and 2 bits: a knee and an exponential pass through the same points.
    x, y = np.array([6.02, 9.22, 10.03, 10.83]), np.array([-0.002, 0.239, 0.999, 9.953])
    noise = np.random.default_rng(0).normal(0, [0.001, 0.025, 0.048, 0.207], (300, 4))
    found = knee(thresholds.make_curve(x, y, y + noise, 16))
    assert found.answer == TOO_FEW
    assert "more points would tell" in found.reason


def test_a_phase_point_is_found_where_the_form_is_the_published_one() -> None:
    x = np.arange(1, 9) / 10
    rng = np.random.default_rng(4)
    truth = 0.1 * x**0.5 + 9 * np.maximum(x - 0.55, 0) + 12 * np.maximum(x - 0.55, 0) ** 2
    found = knee(measured(rng, x, truth, 0.005, 0.0), PHASES)
    assert found.answer == LOCATED
    # Knees are tried on a grid.
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.551 <= found.high
    assert "power_exponential" in found.shape


def test_noise_alone_is_no_damage() -> None:
    rng = np.random.default_rng(5)
    x = np.arange(1, 7) / 10
    shapes = [FittedCurve(measured(rng, x, 0 * x, 0.02, 0.0), 0.95, 0).best().shape for _ in range(40)]
    assert shapes.count("none") >= 24


def test_damage_that_slows_down_is_no_cliff() -> None:
    assert knee(exact([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 1.9, 2.2, 2.3, 2.4])).answer == NO_CLIFF


def test_a_bend_at_the_edge_cannot_be_placed() -> None:
    noise = np.random.default_rng(6).normal(0, 1e-4, (60, 6))
    y = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 4.0])
    found = knee(thresholds.make_curve(np.arange(1, 7) / 10, y, y + noise, BLOCKS))
    assert found.answer == TOO_FEW
    # A gentle bend does as well: with one point beyond it, nothing tells.
    assert "more points would tell" in found.reason


def test_a_cliff_behind_many_even_points_lies_between_the_last_two() -> None:
    x = np.arange(1, 13) / 10
    y = np.where(x > 1.15, 9.0, x)
    noise = np.random.default_rng(7).normal(0, 1e-3, (100, len(x)))
    threshold = knee(thresholds.make_curve(x, y, y + noise, BLOCKS))
    assert threshold.answer == TOO_FEW
    assert threshold.between == pytest.approx((1.1, 1.2))
    assert threshold.reason == "the bend lies between the last two points: a point between or beyond them is needed"


def test_few_points_give_no_knee() -> None:
    found = knee(exact([0.1, 0.2, 0.3], [0.1, 0.2, 3.0]))
    assert found.as_json() == {"answer": TOO_FEW, "reason": "3 measured points; a knee needs 4"}


@pytest.mark.parametrize("y", [[0.0] * 5, [1e-12] * 5, [5.0, 50.0, 500.0, 5e3, 5e4], [-0.1, -0.2, -0.1, 0.3, 0.1]])
def test_odd_curves_break_nothing(y: list[float]) -> None:
    judged = FittedCurve(exact([0.1, 0.2, 0.3, 0.4, 0.5], y), 0.95, 0)
    for among in (TWO_SEGMENTS, PHASES):
        assert judged.knee(among).answer in (LOCATED, NO_CLIFF, TOO_FEW)
    assert np.isfinite(judged.best().y).all()


# Levels.


def test_the_interval_of_a_level_covers_it_whatever_runs_between_the_points() -> None:
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    level = math.log(2)
    rng = np.random.default_rng(3)
    for shape, place in CONVEX.values():
        answers = [thresholds.level_point(measured(rng, x, shape(x), 0.03, 0.0), level, 0.95) for _ in range(60)]
        assert np.mean([covers(answer, place) for answer in answers]) >= 0.95
        assert all(answer.between == pytest.approx((0.2, 0.3)) for answer in answers)


CONVEX: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "power": (lambda x: level_at(x / 0.27) ** 3, 0.27),
    "exponential": (lambda x: math.log(2) * np.expm1(8 * x) / math.expm1(8 * 0.27), 0.27),
    "logistic": (lambda x: 10.8 / (1 + (10.8 / math.log(2) - 1) * np.exp(-18 * (x - 0.27))), 0.27),
    "knee": (lambda x: 0.5 * x + 12 * np.maximum(x - 0.23, 0), 0.23 + (math.log(2) - 0.115) / 12.5),
}
"""Damage whose perplexity doubles at a known place: it grows faster and faster, or so up to what chance leaves."""


def level_at(x: Floats) -> Floats:
    """Damage in doublings, cube root: 1 where the perplexity doubles if ``x`` is 1."""
    return float(np.cbrt(math.log(2))) * x


def test_a_threshold_is_never_finer_than_the_setting() -> None:
    # Blocks of a model of 30: after three of them the perplexity is 1.36 times the base's; nothing is known of one.
    blocks = np.arange(31) / 30
    found = thresholds.level_point(exact([0.1, 0.2, 0.3], [0.31, 0.67, 0.96]), math.log(1.1), 0.95, blocks)
    assert [found.low, found.high] == pytest.approx([0.0, 0.1])
    every = thresholds.level_point(exact([1 / 30, 2 / 30, 0.1], [0.03, 0.2, 0.31]), math.log(1.1), 0.95, blocks)
    assert [every.low, every.high] == pytest.approx([1 / 30, 2 / 30])
    assert 1 / 30 < every.estimate < 2 / 30
    whole = thresholds.level_point(exact([1 / 30, 2 / 30, 0.1], [0.03, 0.2, 0.31]), math.log(1.1), 0.95, blocks, True)
    assert whole.estimate == pytest.approx(2 / 30)


def test_points_of_one_method_at_whole_bits() -> None:
    """Measured: RTN of the default model on prose at 8, 4, 3 and 2 bits; at 5 bits the perplexity is 1.05 times the
    base's, so that the first 10 % lie between 4 and 5 bits, 6.78 and 7.58 measured ones."""
    bits = np.array([9.982, 6.776, 5.974, 5.172])
    widths = 16 - (np.arange(2, 9) - 2) * 0.8016 - 5.1724
    y = np.array([-0.0034, 0.2586, 0.9635, 9.5089])
    noise = np.random.default_rng(0).normal(0, [0.002, 0.03, 0.05, 0.2], (500, 4))
    curve = thresholds.make_curve(16 - bits, y, y + noise, 16)
    found = thresholds.level_point(curve, math.log(1.1), 0.95, np.concatenate([[0.0], widths]))
    assert found.high is not None
    assert found.low is not None
    low, high = 16 - found.high, 16 - found.low
    assert low <= 6.78
    assert 7.58 <= high <= 9.2


def test_a_level_that_is_never_or_hardly_reached() -> None:
    never = thresholds.level_point(exact([1.0, 2.0], [0.1, 0.3]), math.log(2), 0.95)
    assert never.answer == NO_CLIFF
    assert never.most == 0.3
    x, y = np.array([1.0, 2.0]), np.array([0.2, 0.72])
    replicates = y + np.random.default_rng(0).normal(0, [0.01, 0.1], (1000, 2))
    hardly = thresholds.level_point(thresholds.make_curve(x, y, replicates, BLOCKS), math.log(2), 0.95)
    assert hardly.answer == LOCATED
    assert hardly.high is None
    assert hardly.resamples_reaching is not None
    assert 0.4 < hardly.resamples_reaching < 0.8
    assert thresholds.level_point(exact([1.0], [3.0]), math.log(2), 0.95).answer == TOO_FEW


def test_points_at_the_same_place_are_averaged() -> None:
    curve = thresholds.make_curve(np.array([2.0, 1.0, 2.0]), np.array([1.0, 0.2, 3.0]), np.array([[1.0, 0.2, 3.0]]), 5)
    assert curve.x.tolist() == [0, 1, 2]
    assert curve.y.tolist() == pytest.approx([0, 0.2, 2.0])
    assert curve.replicates.tolist() == [pytest.approx([0, 0.2, 2.0])]
