"""How long texts agree: Kaplan and Meier's estimate by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hemorrhage.analyze.rows import survival
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], (3, False)),
        ([1, 2, 3], [1, 9, 3], (2, True)),
        ([7, 2], [1, 2], (1, True)),
        ([1, 2], [1, 2, 3], (3, True)),
        ([1, 2, 3, 4], [1, 2], (3, True)),
    ],
)
def test_the_first_token_that_differs(base: list[int], other: list[int], expected: tuple[int, bool]) -> None:
    assert survival.find_divergence(base, other) == expected


def kaplan_meier(times: list[int], seen: list[bool], until: int) -> float:
    share = 1.0
    for time in range(1, until + 1):
        risk = sum(one >= time for one in times)
        fell = sum(one == time and event for one, event in zip(times, seen, strict=True))
        share *= 1 - fell / risk if risk else 1
    return share


def test_survival_is_kaplan_and_meiers() -> None:
    generator = np.random.default_rng(0)
    times, seen = generator.integers(1, 12, 30), generator.random(30) < 0.7
    found = survival.survival(survival.Times(times, seen), "prose", SPEC)
    for at, share in zip(found.at.tolist(), found.share, strict=True):
        assert share == pytest.approx(kaplan_meier(times.tolist(), seen.tolist(), at))
    assert found.mean == pytest.approx(sum(kaplan_meier(times.tolist(), seen.tolist(), t) for t in found.at[1:]))
    assert found.mean_low < found.mean < found.mean_high
    known = ~np.isnan(found.low)
    assert (found.low[known] <= found.share[known]).all()
    assert (found.share[known] <= found.high[known]).all()
    # One count for each resample: every text twice is the same curve.
    twice = np.full((1, 30), 2)
    assert survival.mean_agreement(survival.Times(times, seen), twice, int(times.max()))[0] == pytest.approx(found.mean)
    assert [tokens for tokens, *_ in survival.points(found)] == [1, 2, 4, 8]


def test_texts_that_never_differ_agree_to_their_end() -> None:
    found = survival.survival(survival.Times(np.array([4, 6]), np.array([False, False])), "prose", SPEC)
    assert found.share.tolist() == [1.0] * 7
    assert found.mean == 6
    assert found.differing == 0
