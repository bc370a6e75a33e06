"""Groups of models against each other: literal tests, and simulated studies with and without an effect."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.family import effects
from hemorrhage.analyze.family.effects import DIFFER, NO_DIFFERENCE, TOO_FEW

A, B, C = (3.1, 3.4, 3.0, 3.3), (4.0, 4.4, 4.1), (3.2, 3.1, 3.6)


def test_two_groups_are_compared_by_welch() -> None:
    (result,) = effects.contrasts({"a": A, "b": B}, 0.95)
    peer = stats.ttest_ind(B, A, equal_var=False)
    low, high = peer.confidence_interval(0.95)
    assert result.difference == pytest.approx(np.mean(B) - np.mean(A))
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.p == pytest.approx(peer.pvalue)
    assert result.verdict == DIFFER


def test_pairs_share_the_error_by_holm() -> None:
    result = effects.contrasts({"a": A, "b": B, "c": C}, 0.95)
    p = [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in ((A, B), (A, C), (B, C))]
    assert [each.p for each in result] == pytest.approx([3 * p[0], p[1], 2 * p[2]])
    assert [each.verdict for each in result] == [DIFFER, NO_DIFFERENCE, DIFFER]


def test_holm_is_monotone_and_never_above_one() -> None:
    # Holm (1979), by hand: 4 * .005, 3 * .01, then never less than what came before.
    assert effects.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert effects.holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize("few", [(), (3.0,), (3.0, 3.1)])
def test_fewer_than_three_models_are_compared_with_nothing(few: tuple[float, ...]) -> None:
    (result,) = effects.contrasts({"a": A, "b": few}, 0.95)
    assert result.verdict == TOO_FEW
    assert math.isnan(result.p)


def test_a_slope_is_that_of_least_squares() -> None:
    values = {f"m{i}": float(x) for i, x in enumerate((1e5, 1e5, 1e6, 1e6, 1e7, 1e7))}
    outcome = dict(zip(values, (4.1, 4.0, 3.6, 3.7, 3.0, 3.2), strict=True))
    result = effects.move("parameters", outcome, values, dict.fromkeys(values, math.nan), 0.95)
    peer = stats.linregress(np.log10(list(values.values())), list(outcome.values()))
    half = stats.t.ppf(0.975, 4) * peer.stderr
    assert result is not None
    assert result.per_tenfold
    assert (result.slope, result.low, result.high) == pytest.approx((peer.slope, peer.slope - half, peer.slope + half))
    assert result.p == pytest.approx(peer.pvalue)
    assert math.isnan(result.beside_loss)


def test_a_large_factor_that_hardly_varies_has_the_interval_of_least_squares() -> None:
    # Parameters of six models of almost one size, and losses that scatter.
    x = np.array([861408.0, 862560.0, 862560.0, 862656.0, 880320.0, 880128.0])
    y = np.array([6.59, 6.69, 6.48, 6.65, 6.75, 6.74])
    peer = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 4) * peer.stderr
    expected = peer.slope, peer.slope - half, peer.slope + half, peer.pvalue
    assert effects.slope(np.column_stack([x]), y, 0.95) == pytest.approx(expected, rel=1e-6)


def test_a_factor_that_is_the_loss_in_disguise_is_not_told_from_it() -> None:
    values = {f"m{i}": float(i) for i in range(8)}
    losses = {name: 5 - value / 10 for name, value in values.items()}
    outcome = {name: value + 0.1 * (-1) ** int(value) for name, value in values.items()}
    result = effects.move("width", outcome, values, losses, 0.95)
    assert result is not None
    assert result.correlation == pytest.approx(-1)
    assert math.isnan(result.beside_loss)


def test_values_that_are_unknown_take_no_part() -> None:
    values = {f"m{i}": float(i) for i in range(5)}
    outcome = {**values, "m4": math.nan}
    result = effects.move("width", outcome, values, dict.fromkeys(values, 1.0), 0.95)
    assert result is not None
    assert result.models == 4
    assert effects.move("width", {**outcome, "m3": math.nan}, values, dict.fromkeys(values, 1.0), 0.95) is None


def errors(draw: np.random.Generator, means: Mapping[str, float], seeds: int, tail: bool) -> bool:
    """Tell whether two groups of one simulated outcome are said to differ; skewed where ``tail``."""

    def values(mean: float) -> list[float]:
        noise = draw.standard_exponential(seeds) - 1 if tail else draw.standard_normal(seeds)
        return list(mean + noise)

    return any(each.verdict == DIFFER for each in effects.contrasts({g: values(m) for g, m in means.items()}, 0.95))


@pytest.mark.parametrize("tail", [False, True])
def test_five_equal_groups_are_rarely_said_to_differ(tail: bool) -> None:
    draw = np.random.default_rng(0)
    equal = dict.fromkeys("abcde", 0.0)
    wrong = sum(errors(draw, equal, 3, tail) for _ in range(400))
    # Binomial: 5 % of 400 is 20, and 33 are exceeded by chance in 2 of 1,000 cases.
    assert wrong <= 33


def test_a_planted_difference_is_found() -> None:
    draw = np.random.default_rng(1)
    planted = {"a": 0.0, "b": 0.0, "c": 12.0}
    assert sum(errors(draw, planted, 3, False) for _ in range(200)) >= 190


def test_the_least_difference_that_is_seen_is_seen_in_four_of_five_studies() -> None:
    draw = np.random.default_rng(2)
    spread, seeds = 0.3, 4
    squares = [effects.least_seen(list(draw.normal(0, spread, (2, seeds))), 0.95) ** 2 for _ in range(400)]
    least = math.sqrt(np.mean(squares))
    shown = sum(
        effects.contrasts(
            {"a": list(draw.normal(0, spread, seeds)), "b": list(draw.normal(least, spread, seeds))}, 0.95
        )[0].verdict
        == DIFFER
        for _ in range(400)
    )
    # Welch's freedom is less than that of two groups of one spread, which costs a little.
    assert 0.68 < shown / 400 < 0.88


def test_what_was_not_compared_has_no_least_difference() -> None:
    assert math.isnan(effects.least_seen([A, (1.0, 2.0)], 0.95))
