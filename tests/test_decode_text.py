"""Answers extracted from texts, and how much texts repeat themselves."""

from __future__ import annotations

import random

import pytest

from hemorrhage.decode.answers import extract, is_right
from hemorrhage.decode.degeneration import distinct_n, loop_period, loop_rate, rep_n


@pytest.mark.parametrize(
    ("text", "right", "answer", "correct"),
    [
        (" 19.\n3 + 4 = 7", "19", "19", True),
        (" is 19.0 in all", "19", "19.0", True),
        (" 1,900 and 3", "1900", "1,900", True),
        (" 19, 20", "19", "19", True),
        (" 190", "19", "190", False),
        (" 1234,567", "1234", "1234", True),
        (" -3", "-3", "-3", True),
        (" −3", "-3", "−3", True),
        (" 3", "-3", "3", False),
        (" nineteen", "19", "", False),
        ("", "19", "", False),
        (" Paris, the capital", "paris", "Paris", True),
        ("\n\n- are not", "are", "are", True),
        (" don't go", "don't", "don't", True),
        (" is", "are", "is", False),
        (" New York. It", "New York", "New York", True),
        (" New", "New York", "", False),
        ("...", "are", "", False),
        (" 7th", "red", "7th", False),
    ],
)
def test_answers(text: str, right: str, answer: str, correct: bool) -> None:
    assert extract(text, right) == answer
    assert is_right(answer, right) is correct


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
