"""The order of variants: on made-up damage whose truth is known, ties are called ties at the promised rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.rows.draws import NONE, Spread
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.verdicts import ranking
from hemorrhage.analyze.verdicts.ranking import Measured, Rank, holm, letter_groups, order, pair_tests

STUDIES = 300
LEVELS = (0.1, 0.1, 0.1, 0.1, 0.11, 0.11, 0.11, 0.4, 0.4, 0.4)
"""True KL of ten variants: three sets of equal ones, the second barely worse than the first."""


def study(
    levels: Sequence[float], seed: int, windows: int = 32, resamples: int = 400, own: float = 0.3
) -> dict[str, Measured]:
    """Damage of windows that are easy or hard for all variants, each with noise of its own."""
    generator = np.random.default_rng(seed)
    counts = bootstrap.draws("made", windows, resamples, seed)
    hard = generator.lognormal(0, 0.7, windows)
    sizes = np.full(windows, 63, dtype=np.int64)
    found = {}
    for index, level in enumerate(levels):
        noise = generator.lognormal(-(own**2) / 2, own, windows)
        sums = level * hard * noise * sizes
        found[f"v{index}"] = Measured(float(sums.sum() / sizes.sum()), bootstrap.means(counts, sums, sizes))
    return found


@pytest.fixture(scope="module")
def studies() -> list[list[Rank]]:
    return [order(study(LEVELS, seed), 32, 0.95) for seed in range(STUDIES)]


def level_of(rank: Rank) -> float:
    return LEVELS[int(rank.variant[1:])]


def differ(first: Rank, second: Rank) -> bool:
    return not set(first.letters) & set(second.letters)


def test_any_tie_is_called_a_difference_as_rarely_as_promised(studies: list[list[Rank]]) -> None:
    wrong = sum(any(differ(a, b) for a in ranks for b in ranks if level_of(a) == level_of(b)) for ranks in studies)
    assert wrong <= stats.binom.ppf(0.999, STUDIES, 0.05)


def test_without_the_correction_ties_would_often_be_called_differences() -> None:
    wrong = 0
    for seed in range(100):
        names = sorted(found := study(LEVELS, seed))
        p = pair_tests([found[name] for name in names], 32)
        tied = np.equal.outer(LEVELS, LEVELS)
        wrong += bool((p[tied] < 0.05).any())
    assert wrong > 30


def test_what_is_far_apart_is_always_seen(studies: list[list[Rank]]) -> None:
    for ranks in studies:
        assert {level_of(rank) for rank in ranks[-3:]} == {0.4}
        assert all(differ(a, b) for a in ranks[:7] for b in ranks[7:])
        assert min(rank.first for rank in ranks[7:]) == 8


def test_true_ranks_lie_in_the_ranks_that_are_named(studies: list[list[Rank]]) -> None:
    """Equal variants have all ranks of their set: each has to be among those of any of them, in 95 % of studies."""
    wrong = 0
    for ranks in studies:
        for rank in ranks:
            better = sum(level < level_of(rank) for level in LEVELS)
            least, most = better + 1, better + LEVELS.count(level_of(rank))
            if rank.first > least or rank.last < most:
                wrong += 1
                break
    assert wrong <= stats.binom.ppf(0.999, STUDIES, 0.05)


def test_holms_correction_is_that_of_its_paper() -> None:
    p = np.ones((3, 3))
    for (i, j), value in {(1, 0): 0.01, (2, 0): 0.04, (2, 1): 0.03}.items():
        p[i, j] = p[j, i] = value
    corrected = holm(p)
    assert corrected[1, 0] == pytest.approx(0.03)
    assert corrected[2, 1] == pytest.approx(0.06)
    # Never less than that of a smaller p-value.
    assert corrected[2, 0] == pytest.approx(0.06)
    assert (corrected == corrected.T).all()


def flags(count: int, *pairs: tuple[int, int]) -> Any:
    different = np.zeros((count, count), dtype=bool)
    for i, j in pairs:
        different[i, j] = different[j, i] = True
    return different


def test_two_share_a_letter_where_they_are_not_different() -> None:
    assert letter_groups(flags(3)) == ["a", "a", "a"]
    assert letter_groups(flags(3, (0, 2))) == ["a", "ab", "b"]
    assert letter_groups(flags(4, (0, 1), (0, 2), (0, 3), (1, 3))) == ["a", "b", "bc", "c"]
    generator = np.random.default_rng(0)
    for _ in range(30):
        upper = np.triu(generator.random((9, 9)) < 0.5, 1)
        different = upper | upper.T
        letters = letter_groups(different)
        for i in range(9):
            for j in range(i):
                assert bool(set(letters[i]) & set(letters[j])) != different[i, j]


def test_letters_go_on_after_the_alphabet() -> None:
    letters = letter_groups(~np.eye(54, dtype=bool))
    assert [letters[0], letters[25], letters[26], letters[51], letters[53]] == ["a", "z", "A", "Z", "[54]"]


def test_a_difference_that_another_calibration_draw_would_make_is_none() -> None:
    """A side that moves by 10 % over draws: p is Student's t of Welch's degrees of freedom, worked out here."""
    once = study([0.1], 0)["v0"]
    rtn, gptq = Measured(1.2 * once.kl, 1.2 * once.replicates), Measured(once.kl, once.replicates)
    assert [rank.letters for rank in order({"rtn": rtn, "gptq": gptq}, 32, 0.95)] == ["a", "b"]
    moving = replace(gptq, draw=Spread(0.1, 3))
    p = pair_tests([rtn, moving], 32)[0, 1]
    assert p == pytest.approx(2 * stats.t.sf(math.log(1.2) / 0.1, 3))
    assert [rank.letters for rank in order({"rtn": rtn, "gptq": moving}, 32, 0.95)] == ["a", "a"]
    # Both sides move, by one spread that is known once.
    both = pair_tests([replace(rtn, draw=moving.draw), moving], 32)[0, 1]
    assert both == pytest.approx(2 * stats.t.sf(math.log(1.2) / (0.1 * math.sqrt(2)), 3))
    assumed = pair_tests([rtn, replace(gptq, draw=Spread(0.1))], 32)[0, 1]
    assert assumed == pytest.approx(2 * stats.norm.sf(math.log(1.2) / 0.1))
    ranks = order({"rtn": rtn, "gptq": replace(gptq, draw=Spread(0.1))}, 32, 0.95)
    assert ranks[1].times_low == pytest.approx(1.2 * math.exp(-0.2), rel=0.1)
    assert ranks[1].times_high == pytest.approx(1.2 * math.exp(0.2), rel=0.1)
    # A KL of its own is that of the checkpoint, whatever the draw.
    still = order({"gptq": gptq}, 32, 0.95)[0]
    assert (ranks[0].low, ranks[0].high) == (still.low, still.high)


def test_ties_are_called_differences_as_rarely_as_promised_when_draws_move_them() -> None:
    """Equal methods, each calibrated once: without the spread of draws nearly every study would tell them apart."""
    wrong = dict.fromkeys((NONE, Spread(0.1)), 0)
    for seed in range(100):
        levels = 0.2 * np.exp(0.1 * np.random.default_rng(seed).normal(size=4))
        for spread in wrong:
            measured = study(levels.tolist(), seed, 64, own=0.05)
            drawn = {name: replace(each, draw=spread) for name, each in measured.items()}
            wrong[spread] += any(differ(a, b) for a, b in itertools.combinations(order(drawn, 64, 0.95), 2))
    assert wrong[NONE] > 80
    assert wrong[Spread(0.1)] <= stats.binom.ppf(0.999, 100, 0.05)


def test_rounding_is_no_difference_and_neither_are_two_windows() -> None:
    once = study([0.1], 0)["v0"]
    again = Measured(once.kl + 1e-6, once.replicates + 1e-6)
    assert [rank.letters for rank in order({"a": once, "b": again}, 32, 0.95)] == ["a", "a"]
    far = Measured(2 * once.kl, 2 * once.replicates)
    ranks = order({"b": far, "a": once}, 32, 0.95)
    assert [(rank.variant, rank.first, rank.last, rank.letters) for rank in ranks] == [
        ("a", 1, 1, "a"),
        ("b", 2, 2, "b"),
    ]
    assert ranks[0].times is None
    assert ranks[1].times == pytest.approx(2)
    assert ranks[1].p == pytest.approx(0, abs=1e-12)
    assert [rank.letters for rank in order({"b": far, "a": once}, 2, 0.95)] == ["a", "a"]
    assert ranking.order({}, 32, 0.95) == []
