"""Answers extracted from texts."""

from __future__ import annotations

import pytest

from hemorrhage.decode.answers import extract, flexible_number, is_right, plain_number, strict_number


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


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 3+4=7 dogs\n#### 7", "7", "7"),
        ("\n#### $2,125", "", "$2,125"),
        ("\n#### 2,125\n", "2,125", "2,125"),
        (" She has 5 apples and 18 dollars.", "", "18"),
        (" That makes $1,450,000.", "", "$1,450,000."),
        (" It costs $18.50 in all", "", "$18.50"),
        (" the change is -10", "", "-10"),
        (" 7 so far\n#### 8 miles, not 9", "8", "9"),
        ("#### 4\n#### 5", "4", "5"),
        (" many", "", ""),
        (" 12.", "", "12."),
        ("####", "", ""),
        ("...", "", "..."),
    ],
)
def test_a_solution_is_read_by_both_filters_of_lm_eval(text: str, strict: str, flexible: str) -> None:
    """Values by hand from gsm8k.yaml of lm-eval; tests/evaluate/test_harness.py asks lm-eval itself."""
    assert (strict_number(text), flexible_number(text)) == (strict, flexible)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("$1,450,000.", "1450000"), ("so 2\n#### 18", "18"), ("18.50", "18.50"), ("-10", "-10"), ("18", "18")],
)
def test_numbers_are_compared_as_text(text: str, plain: str) -> None:
    assert plain_number(text) == plain
