"""Answers extracted from texts."""

from __future__ import annotations

import pytest

from hemorrhage.decode.answers import extract, final_number, is_right


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
    ("text", "right", "answer", "correct"),
    [
        (" 3+4=7 dogs\n#### 7", "7", "7", True),
        ("\n#### $2,125\n\nQuestion: What is 1+1?\nAnswer: 2\n#### 2", "2125", "2,125", True),
        (" She has 5 apples and 18 dollars.", "18", "18", True),
        (" That makes $1,450,000.", "1450000", "1,450,000", True),
        (" It costs $18.50 in all", "18.5", "18.50", True),
        (" 60% of it", "60", "60", True),
        (" so 16-3=13, and 13-10", "10", "10", True),
        (" the change is -10", "-10", "-10", True),
        (" 7 so far\n#### 8 miles, not 9", "8", "8", True),
        (" Answer is 4.\n\nQuestion: Tom has 9 dogs.", "4", "4", True),
        ("Question: 5", "5", "", False),
        (" many", "5", "", False),
        (" 12.", "12", "12", True),
        ("####", "12", "", False),
    ],
)
def test_the_number_a_solution_arrives_at(text: str, right: str, answer: str, correct: bool) -> None:
    assert final_number(text) == answer
    assert is_right(answer, right) is correct
