"""Bounds that a limit is compared with: how often they are wrong, and whether the sizes that they ask for decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.stats import bounds


def tail(shape: float, n: int, level: float, runs: int = 40_000) -> float:
    """Share of samples of gamma distributed blocks whose upper bound lies below the mean."""
    x = np.random.default_rng(n).gamma(shape, 1 / shape, (runs, n))
    error = x.std(axis=1, ddof=1) / math.sqrt(n)
    return float((x.mean(axis=1) + bounds.skewed_quantile(level, n) * error < 1).mean())


@pytest.mark.parametrize("n", [3, 8, 16, 20, 40])
def test_the_bound_of_blocks_of_the_assumed_skewness_has_its_level(n: int) -> None:
    shape = 4 / bounds.skewness(n) ** 2
    assert tail(shape, n, 0.05) == pytest.approx(0.05, abs=0.006)
    assert tail(shape, n, 0.005) == pytest.approx(0.005, abs=0.0015)


def test_between_its_lines_and_beyond_them_the_table_goes_on() -> None:
    for n in (4, 16, 64, 1024):
        at = [bounds.skewed_quantile(level, n) for level in (0.4, 0.25, 0.05, 0.03, 0.0002, 0.00001)]
        assert at == sorted(at)
    by_n = [bounds.skewed_quantile(0.01, n) for n in (2, 3, 5, 10, 50, 300, 5000, 10**9)]
    assert by_n == sorted(by_n, reverse=True)
    assert by_n[-1] == pytest.approx(stats.norm.isf(0.01), rel=1e-3)


def test_a_share_of_none_is_bounded_better_than_a_share_of_one() -> None:
    highs = [bounds.share_bounds(count / 48, 48, 0.05)[1] for count in range(49)]
    assert highs == sorted(highs)
    assert highs[0] == pytest.approx(1 - 0.05 ** (1 / 48))
    lows = [bounds.share_bounds(count / 48, 48, 0.05)[0] for count in range(49)]
    assert lows[0] == 0
    assert stats.binom.sf(9, 48, lows[10]) == pytest.approx(0.05)
    assert stats.binom.cdf(10, 48, highs[10]) == pytest.approx(0.05)


def test_a_difference_of_shares_is_covered_whatever_cancels() -> None:
    rng = np.random.default_rng(1)
    for lost, won in ((0.02, 0.0), (0.05, 0.03), (0.2, 0.1)):
        drawn = rng.multinomial(192, [lost, won, 1 - lost - won], 800)[:, :2] / 192
        ends = np.array([bounds.difference_bounds(first, second, 192, 0.05) for first, second in drawn.tolist()])
        assert (ends[:, 1] < lost - won).mean() <= 0.065
        assert (ends[:, 0] > lost - won).mean() <= 0.065
    assert bounds.difference_bounds(0, 0, 192, 0.05)[1] == pytest.approx(1 - 0.05 ** (1 / 192))


def test_the_windows_that_are_asked_for_decide_in_four_of_five_cases() -> None:
    """Damage is measured on 16 windows, and again on as many fresh ones as that asks for."""
    rng, limit, shape, level = np.random.default_rng(2), 0.1, 16.0, 0.05
    for truth in (limit / 1.5, 1.4 * limit):
        decided = []
        for _ in range(200):
            first = truth * rng.gamma(shape, 1 / shape, 16)
            error = first.std(ddof=1) / 4
            n = bounds.windows_needed(first.mean(), error, 16, limit, level)
            assert n is not None
            fresh = truth * rng.gamma(shape, 1 / shape, n)
            low, high = bounds.mean_bounds(fresh.mean(), fresh.std(ddof=1) / math.sqrt(n), n, level)
            decided.append(high < limit or low > limit)
        assert np.mean(decided) >= 0.78


def test_a_variant_well_below_the_limit_is_confirmed_in_four_of_five_cases() -> None:
    rng, limit, level = np.random.default_rng(3), 0.1, 0.01
    truth, shape = limit / 1.5, 4.0
    n = bounds.windows_to_confirm(truth, truth / math.sqrt(shape), limit, level)
    assert n is not None
    x = truth * rng.gamma(shape, 1 / shape, (4000, n))
    highs = x.mean(axis=1) + bounds.skewed_quantile(level, n) * x.std(axis=1, ddof=1) / math.sqrt(n)
    assert 0.78 <= (highs < limit).mean() <= 0.92
    items = bounds.items_to_confirm(0.05 / 1.5, 0.05, level)
    assert items is not None
    flips = rng.binomial(items, 0.05 / 1.5, 800)
    called = [bounds.share_bounds(count / items, items, level)[1] < 0.05 for count in flips]
    assert 0.77 <= np.mean(called) <= 0.88
    assert bounds.windows_to_confirm(limit, 0.01, limit, level) is None
    assert bounds.items_to_confirm(0.05, 0.05, level) is None


def test_the_items_that_are_asked_for_decide_in_four_of_five_cases() -> None:
    rng, limit, level = np.random.default_rng(4), 0.05, 0.05
    for truth in (limit / 2, 2 * limit):
        decided, asked = 0, 0
        for _ in range(200):
            share = rng.binomial(96, truth) / 96
            n = bounds.items_needed(share, 96, limit, level)
            if n is not None:
                low, high = bounds.share_bounds(rng.binomial(n, truth) / n, n, level)
                decided, asked = decided + (high < limit or low > limit), asked + 1
        assert asked > 190
        assert decided / asked >= 0.78


def test_what_lies_on_the_limit_is_never_decided() -> None:
    assert bounds.windows_needed(0.1, 0.0, 16, 0.1, 0.05) is None
    assert bounds.windows_needed(0.05, 0.0, 16, 0.1, 0.05) == 16
