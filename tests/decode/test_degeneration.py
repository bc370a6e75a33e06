"""Repetition, loops and the entropy of texts."""

from __future__ import annotations

import math
import random

import pytest

from hemorrhage.decode.degeneration import distinct_n, loop_period, loop_rate, rep_n, token_entropy


def test_repetition_is_what_counting_gives() -> None:
    generator = random.Random(0)
    for _ in range(50):
        tokens = [generator.randrange(4) for _ in range(generator.randrange(30))]
        for n in (1, 2, 3, 4):
            seen: list[list[int]] = []
            total = 0
            for start in range(len(tokens)):
                gram = tokens[start : start + n]
                if len(gram) == n:
                    total += 1
                    if gram not in seen:
                        seen.append(gram)
            assert distinct_n(tokens, n) == pytest.approx(len(seen) / total if total else 1)
            assert rep_n(tokens, n) == pytest.approx(1 - len(seen) / total if total else 0)
    with pytest.raises(ValueError, match="at least 1"):
        rep_n([1, 2], 0)


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([9, 8, 7] + [1] * 8, 1),
        ([9, 8, 7] + [1] * 7, 0),
        ([5] + [1, 2, 3] * 3, 3),
        ([5] + [1, 2, 3] * 3 + [1, 2], 3),
        ([5] + [1, 2, 3] * 2 + [1, 2], 0),
        ([1, 2, 3] * 3 + [4], 0),
        (list(range(40)), 0),
        ([1, 1, 2] * 6, 3),
        ([], 0),
    ],
)
def test_loops(tokens: list[int], period: int) -> None:
    assert loop_period(tokens) == period
    assert loop_rate([tokens, [1] * 20]) == (0.5 if period == 0 else 1.0)


def test_the_entropy_of_tokens_is_that_of_their_shares() -> None:
    assert token_entropy([[1, 2], [3, 4]]) == pytest.approx(math.log(4))
    assert token_entropy([[1, 1, 1], [1]]) == 0
    assert token_entropy([[1, 1, 2], []]) == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert math.isnan(token_entropy([[]]))
