"""Intervals against scipy, brute force and their promised coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.stats import bootstrap


def test_draws_are_resamples_that_depend_on_text_and_seed_only() -> None:
    counts = bootstrap.draws("prose", 16, 500, 0)
    assert counts.shape == (500, 16)
    assert (counts.sum(axis=1) == 16).all()
    assert (counts == bootstrap.draws("prose", 16, 500, 0)).all()
    assert (counts != bootstrap.draws("code", 16, 500, 0)).any()
    assert (counts != bootstrap.draws("prose", 16, 500, 1)).any()
    assert abs(counts.mean(axis=0) - 1).max() < 0.2


def test_means_and_quantiles_equal_brute_force_on_resampled_tokens() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(7), [50, 50, 50, 50, 50, 50, 13])
    values = rng.exponential(1, len(blocks)).round(2)  # ties
    counts = bootstrap.draws("text", 7, 40, 3)
    means = bootstrap.means(counts, np.bincount(blocks, weights=values).astype(float), np.bincount(blocks))
    found = bootstrap.quantiles(values, blocks, counts, (0.5, 0.99))
    for row, count in enumerate(counts):
        tokens = np.concatenate([np.tile(values[blocks == block], times) for block, times in enumerate(count)])
        assert means[row] == pytest.approx(tokens.mean())
        assert found[0, row] == np.quantile(tokens, 0.5, method="inverted_cdf")
        assert found[1, row] == np.quantile(tokens, 0.99, method="inverted_cdf")


def test_interval_of_a_mean_agrees_with_scipy_and_students_t() -> None:
    blocks = np.random.default_rng(1).normal(3, 1, 40)
    counts = bootstrap.draws("text", 40, 20000, 0)
    low, high = bootstrap.interval(counts @ blocks / 40, 0.95, 40)
    t = stats.t.interval(0.95, 39, loc=blocks.mean(), scale=stats.sem(blocks))
    assert (low, high) == pytest.approx(t, abs=0.02)
    peer = stats.bootstrap((blocks,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert low < peer.low
    assert high > peer.high
    assert high - low < 1.1 * (peer.high - peer.low)


def test_interval_covers_at_the_promised_rate_with_few_blocks() -> None:
    rng = np.random.default_rng(2)
    counts = bootstrap.draws("text", 16, 1000, 0)
    samples = rng.normal(0, 1, (400, 16))
    hits = 0
    for sample in samples:
        low, high = bootstrap.interval(counts @ sample / 16, 0.95, 16)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_interval_of_one_block_is_unknown() -> None:
    assert all(math.isnan(limit) for limit in bootstrap.interval(np.ones(10), 0.95, 1))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 40), (40, 40)])
def test_wilson_solves_the_score_equation(right: int, n: int) -> None:
    z = stats.norm.ppf(0.975)
    p = right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = bootstrap.wilson(right, n, 0.95)
    assert (low, high) == pytest.approx((max(middle - half, 0), min(middle + half, 1)), abs=1e-12)


@pytest.mark.parametrize("n", [12, 24, 40, 97])
def test_no_success_begins_at_zero_and_all_end_at_one(n: int) -> None:
    assert bootstrap.wilson(0, n, 0.95)[0] == 0.0
    assert bootstrap.wilson(n, n, 0.95)[1] == 1.0


def test_newcombe_gives_the_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), the worked example of
    # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8.
    low, high = bootstrap.newcombe([[1, 1], [7, 12]], 0.95)
    assert (low, high) == pytest.approx((-0.507, -0.026), abs=0.0006)


def test_newcombe_turns_with_the_order_and_covers() -> None:
    low, high = bootstrap.newcombe([[20, 3], [9, 8]], 0.95)
    swapped = bootstrap.newcombe([[20, 9], [3, 8]], 0.95)
    assert (low, high) == pytest.approx((-swapped[1], -swapped[0]))
    rng = np.random.default_rng(0)
    shares = [0.5, 0.05, 0.2, 0.25]
    hits = 0
    for both, first, second, neither in rng.multinomial(40, shares, size=400):
        low, high = bootstrap.newcombe([[both, first], [second, neither]], 0.95)
        hits += low <= shares[1] - shares[2] <= high
    assert 0.92 <= hits / 400 <= 0.985


def test_the_interval_of_a_ratio_is_unknown_where_resamples_often_leave_it_undefined() -> None:
    replicates = np.random.default_rng(0).normal(1, 0.1, 1000)
    replicates[:25] = np.nan
    assert bootstrap.interval_of_ratio(replicates, 0.95, 30) == bootstrap.interval(replicates[25:], 0.95, 30)
    replicates[25] = np.inf
    assert all(map(math.isnan, bootstrap.interval_of_ratio(replicates, 0.95, 30)))
