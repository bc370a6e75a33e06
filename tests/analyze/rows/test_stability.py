"""Spread between strategies and steadiness of two models: a literal double sum, and what noise alone gives."""

from __future__ import annotations

import numpy as np
import pytest

from hemorrhage.analyze.report.sections.decoding import answer
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=300, confidence=0.95, seed=0)


def literal(outcomes: np.ndarray) -> float:
    """Mean square between strategies less the residual one, over items: a table of analysis of variance."""
    items, strategies = outcomes.shape
    residuals = outcomes - outcomes.mean(1)[:, None] - outcomes.mean(0)[None] + outcomes.mean()
    between = items * ((outcomes.mean(0) - outcomes.mean()) ** 2).sum() / (strategies - 1)
    residual = (residuals**2).sum() / ((items - 1) * (strategies - 1))
    return float((between - residual) / items)


def test_the_variance_between_strategies_is_that_of_a_table_of_variance() -> None:
    outcomes = np.random.default_rng(0).integers(0, 2, (30, 5)).astype(float)
    contrasts = stability.center(outcomes)
    once = np.ones((1, 30), dtype=np.int64)
    assert stability.variances(once, contrasts)[0] == pytest.approx(literal(outcomes))
    pairs = [contrasts[i] @ contrasts[j] for i in range(30) for j in range(30) if i != j]
    assert stability.variances(once, contrasts)[0] == pytest.approx(np.mean(pairs) / 4)
    # An item counted twice does not meet itself.
    twice = once.copy()
    twice[0, :2] = 2, 0
    left = [0, 0, *range(2, 30)]
    pairs = [contrasts[i] @ contrasts[j] for i in left for j in left if i != j]
    assert stability.variances(twice, contrasts)[0] == pytest.approx(np.sum(pairs) / (30 * 30 - 4 - 28) / 4)


def test_noise_alone_has_no_spread_where_a_largest_less_a_smallest_does() -> None:
    generator = np.random.default_rng(1)
    found, ranges = [], []
    for _ in range(200):
        outcomes = (generator.random((24, 18)) < 0.6).astype(float)
        once = np.ones((1, 24), dtype=np.int64)
        found.append(stability.variances(once, stability.center(outcomes))[0])
        means = outcomes.mean(0)
        ranges.append((means.max() - means.min()) / means.max())
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    assert np.mean(np.array(ranges) > 0.15) > 0.9


def test_the_mean_range_of_draws_from_a_normal_is_the_tables() -> None:
    # Tippett's d2.
    assert [round(stability.expected_range(n), 3) for n in (2, 3, 5, 12)] == [1.128, 1.693, 2.326, 3.258]


def test_a_spread_is_found_where_it_is() -> None:
    generator = np.random.default_rng(2)
    skills = np.array([0.3, 0.5, 0.7, 0.9])
    found = stability.spread((generator.random((400, 4)) < skills).astype(float), "recall", SPEC)
    assert found is not None
    assert found.sd == pytest.approx(skills.std(ddof=1), abs=0.03)
    assert found.low <= (0.9 - 0.3) / 0.9 <= found.high + 0.05
    assert found.p < 0.01
    alike = stability.spread((generator.random((400, 4)) < 0.6).astype(float), "recall", SPEC)
    assert alike is not None
    assert alike.sd_low == 0
    assert alike.p > 0.05
    assert stability.spread(np.ones((5, 1)), "recall", SPEC) is None
    nothing = stability.spread(np.zeros((5, 2)), "recall", SPEC)
    assert nothing is not None
    assert np.isnan(nothing.relative)


def test_steadiness_compares_coefficients_of_variation() -> None:
    generator = np.random.default_rng(3)
    skills, alike = np.linspace(0.2, 0.9, 8), np.full(8, 0.6)
    difficulty = generator.random((200, 1))
    wild, steady = (difficulty < skills).astype(float), (difficulty < alike).astype(float)
    found = stability.compare(wild, steady, "recall", SPEC)
    assert found is not None
    assert found.first == pytest.approx(np.sqrt(literal(wild)) / wild.mean())
    assert found.second == 0
    assert found.verdict == "steadier"
    assert answer(found).startswith("Yes: ")
    back = stability.compare(steady, wild, "recall", SPEC)
    assert back is not None
    assert back.verdict == "less steady"
    same = stability.compare(wild, wild, "recall", SPEC)
    assert same is not None
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "inconclusive")
    first, second = ((generator.random((12, 8)) < 0.5).astype(float) for _ in range(2))
    weak = stability.compare(first, second, "recall", SPEC)
    assert weak is not None
    assert weak.verdict == "no power"
    assert answer(weak).startswith("No power: ")
    assert stability.compare(np.zeros((9, 3)), wild[:9, :3], "recall", SPEC) is None
