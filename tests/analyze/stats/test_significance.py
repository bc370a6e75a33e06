"""Tests of paired differences: against scipy, brute force, and what they promise on simulated data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemorrhage.analyze.rows.language import Damage
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance

SPEC = Spec(resamples=300, confidence=0.95, seed=0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (1, 9), (12, 5), (0, 6), (40, 61)])
def test_single_items_give_mcnemars_exact_test(gained: int, lost: int) -> None:
    net = np.array([1] * gained + [-1] * lost + [0] * 7)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert significance.mcnemar(net) == pytest.approx(expected)


def test_groups_are_enumerated() -> None:
    net = np.array([3, -1, 2, 2, -3, 1, 4, 0, 1])
    sums = [
        sum(sign * size for sign, size in zip(signs, net, strict=True))
        for signs in itertools.product((1, -1), repeat=9)
    ]
    assert significance.mcnemar(net) == pytest.approx(np.mean(np.abs(sums) >= abs(net.sum())))
    assert significance.sign_flip(net.astype(float), 0) == pytest.approx(significance.mcnemar(net))


def test_sign_flips_are_exact_for_few_blocks_and_close_for_many() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(0.4, 1, 10)
    for alternative in ("two-sided", "greater"):
        mine = significance.sign_flip(few, 0, alternative)
        peer = stats.permutation_test(
            (few,), np.sum, permutation_type="samples", alternative=alternative, n_resamples=np.inf
        ).pvalue
        # scipy doubles the smaller tail, which is the same for a symmetric distribution.
        assert mine == pytest.approx(peer)
    many = rng.normal(0.2, 1, 60)
    assert significance.sign_flip(many, 0) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.03)
    assert significance.sign_flip(many, 3) == significance.sign_flip(many, 3)
    assert significance.sign_flip(np.zeros(5), 0) == 1
    assert significance.sign_flip(np.full(60, 1.0), 0) == 1e-4


def paired(rng: np.random.Generator, shift: float, windows: int, tokens: int = 20) -> pd.DataFrame:
    """Tokens of a variant whose mean nll lies ``shift`` above the base's; windows differ among each other."""
    block = np.repeat(np.arange(windows), tokens)
    base = rng.gamma(1, 3, len(block))
    change = shift + rng.normal(0, 0.05, windows)[block] + rng.normal(0, 0.2, len(block))
    return pd.DataFrame({"window": block, "nll": base + change, "base_nll": base, "kl": np.abs(change)})


@pytest.mark.parametrize("windows", [16, 40])
def test_intervals_cover_and_tests_keep_their_level(windows: int) -> None:
    rng = np.random.default_rng(windows)
    hits = rejected = 0
    runs = 400
    for run in range(runs):
        tokens = paired(rng, 0.0, windows)
        damage = Damage(tokens, pd.DataFrame(), "text", SPEC)
        low, high = bootstrap.interval(damage.ratios, 0.95, windows)
        hits += low <= 0 <= high
        if run % 4 == 0:
            rejected += significance.sign_flip(damage.noise().ratio, 0) < 0.05
    assert 0.93 <= hits / runs <= 0.97
    assert rejected / (runs / 4) <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / (runs / 4))


def test_false_discoveries_are_controlled_where_no_variant_does_anything() -> None:
    rng = np.random.default_rng(5)
    studies = 100
    any_found = 0
    for _ in range(studies):
        p = np.array([significance.sign_flip(rng.normal(0, 1, 12), 0) for _ in range(20)])
        any_found += bool((significance.q_values(p) < 0.05).any())
    assert any_found / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def test_q_values_by_hand() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    # Sorted: 0.005*4/1, 0.01*4/2, 0.03*4/3, 0.04*4/4.
    assert significance.q_values(p).tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])


def test_the_noise_floor_is_subtracted() -> None:
    rng = np.random.default_rng(0)
    again = paired(rng, 0.0, 16)
    noise = Damage(again, pd.DataFrame(), "text", SPEC).noise()
    tests = Damage(again, pd.DataFrame(), "text", SPEC).tests(noise)
    assert tests["ln_perplexity_ratio"].p == 1
    # KL is above 0 for whatever differs: a test of it asks nothing.
    assert set(tests) == {"ln_perplexity_ratio"}


def test_the_detectable_ratio_is_found_four_times_out_of_five() -> None:
    rng = np.random.default_rng(2)
    spread = 0.05
    effects = [significance.detectable_mean(rng.normal(0, spread, 24), np.ones(24), 0.95) for _ in range(100)]
    effect = float(np.mean(effects))
    found = [stats.ttest_1samp(rng.normal(effect, spread, 24), 0).pvalue < 0.05 for _ in range(600)]
    assert 0.74 <= np.mean(found) <= 0.86
    flipped = [significance.sign_flip(rng.normal(effect, spread, 24), 0) < 0.05 for _ in range(100)]
    assert 0.68 <= np.mean(flipped) <= 0.92


@pytest.mark.parametrize(("items", "discordant"), [(96, 0.2), (400, 0.1), (60, 0.0)])
def test_the_detectable_change_is_found_four_times_out_of_five(items: int, discordant: float) -> None:
    effect = significance.detectable_change(items, discordant, 0.95)
    share = max(discordant, effect)
    rng = np.random.default_rng(3)
    better, worse = (share + effect) / 2, (share - effect) / 2
    found = [
        significance.mcnemar(np.array([1] * gained + [-1] * lost)) < 0.05
        for gained, lost, _ in rng.multinomial(items, [better, worse, 1 - share], size=800)
    ]
    assert 0.76 <= np.mean(found) <= 0.84
    assert significance.power(items, share, effect, 0.95) == pytest.approx(0.8, abs=2e-3)


def test_too_few_items_detect_nothing() -> None:
    assert math.isnan(significance.detectable_change(5, 0.2, 0.95))
    assert math.isnan(significance.detectable_mean(np.zeros(8), np.ones(8), 0.95))


def test_effective_size_by_hand() -> None:
    values, groups = np.array([1.0, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 2, 2])
    mean = values.mean()
    clustered = 3 / 2 * ((2 - 2 * mean) ** 2 + (0 - 2 * mean) ** 2 + (1 - 2 * mean) ** 2) / 36
    effect = clustered / (mean * (1 - mean) / 6)
    shrunk = (stats.t.ppf(0.975, 5) / stats.t.ppf(0.975, 2)) ** 2
    assert bootstrap.effective_size(values, groups, 0.95) == pytest.approx(6 / effect * shrunk)
    assert bootstrap.effective_size(values, np.arange(6), 0.95) == 6
    assert bootstrap.effective_size(np.ones(6), groups, 0.95) == 3, "nothing is seen of the design"
    alternating = np.array([1.0, 0, 1, 0, 1, 0])
    assert bootstrap.effective_size(alternating, groups, 0.95) == 6, "never more than the items"


def test_intervals_of_grouped_items_cover_where_plain_ones_do_not() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), 5)
    hits = {"effective": 0, "plain": 0}
    runs = 500
    for _ in range(runs):
        skill = rng.beta(1.2, 0.8, 30)
        right = (rng.random(150) < skill[groups]).astype(float)
        for kind in hits:
            size = bootstrap.effective_size(right, groups, 0.95) if kind == "effective" else 150
            low, high = bootstrap.wilson(right.mean() * size, size, 0.95)
            hits[kind] += low <= 0.6 <= high
    assert 0.93 <= hits["effective"] / runs <= 0.985
    assert hits["plain"] / runs < 0.88


def test_the_largest_of_several_differences_is_corrected_for_all() -> None:
    generator = np.random.default_rng(1)
    for side in ("greater", "two-sided"):
        smallest = [
            significance.largest_differences(generator.normal(size=(20, 40)), seed, side).min() for seed in range(40)
        ]
        assert np.mean(np.array(smallest) <= 0.05) <= 0.15
    planted = generator.normal(size=(20, 40))
    planted[:, 3] -= 2
    assert int(significance.largest_differences(planted, 0).argmin()) == 3
    assert significance.largest_differences(planted, 0, "greater")[3] == 1


def test_holms_correction_is_the_step_down_one() -> None:
    assert significance.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert significance.holm([0.5, 0.9]) == [1.0, 1.0]
    assert significance.holm([]) == []
