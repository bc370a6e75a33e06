"""Answers that are no evidence: constants by enumeration, guessing, penalties on the prompts' own format."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.rows.floors import constant, floors, punished_order, repeats
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=100, confidence=0.95, seed=0)
GREEDY = {"strategy": "greedy"}
FSD = {"strategy": "fsd", "alpha": 0.45, "k": 3, "n": 2}
PROMPT = "3 * 1 = 3\n7 * 1 ="


def answered(
    answers: list[str], right: list[str], settings: dict[str, Any] = GREEDY, prompt: str = PROMPT
) -> pd.DataFrame:
    """Texts of one strategy."""
    return pd.DataFrame(
        {
            "strategy": settings["strategy"],
            "settings": json.dumps(settings),
            "item": range(len(answers)),
            "draw": 0,
            "prompt": prompt,
            "text": [f" {answer}\n" for answer in answers],
            "answer": answers,
            "correct": [one == other for one, other in zip(answers, right, strict=True)],
        }
    )


RIGHT = [str(1 + item % 9) for item in range(24)]


def test_a_variant_that_answers_a_constant_no_longer_does_the_task() -> None:
    base = answered(RIGHT, RIGHT)
    stuck = answered(["2"] * 14 + RIGHT[14:], RIGHT)
    found = floors(stuck, base, SPEC)
    assert found.constant is not None
    assert (found.constant.answer, found.constant.count, found.constant.base_count) == ("2", 15, 3)
    assert found.lost.startswith("answers '2' on 15 of 24, the base on 3 (p ")
    assert found.compared(["greedy"]) == []
    silent = floors(answered([""] * 24, RIGHT), base, SPEC)
    assert silent.lost.startswith("gives no answer on 24 of 24")
    # Wrong, but not by one answer.
    wrong = floors(answered(RIGHT[1:] + RIGHT[:1], RIGHT), base, SPEC)
    assert wrong.lost == ""
    assert floors(base, base, SPEC, is_base=True).constant is None


def test_the_largest_excess_is_tested_by_all_exchanges() -> None:
    theirs, ours = ["1", "2", "3", "4", "2"], ["2", "2", "2", "4", "3"]
    base, variant = (answered(answers, ours) for answers in (theirs, ours))
    found = constant(variant, base, SPEC)
    assert found is not None
    excesses = []
    for swapped in itertools.product([False, True], repeat=5):
        first = [b if swap else a for a, b, swap in zip(ours, theirs, swapped, strict=True)]
        second = [a if swap else b for a, b, swap in zip(ours, theirs, swapped, strict=True)]
        excesses.append(max(first.count(each) - second.count(each) for each in "1234"))
    assert found.p == pytest.approx(np.mean(np.array(excesses) >= 1))


def test_statuses_of_programs_are_no_answers() -> None:
    programs = answered(["failed"] * 20, ["passed"] * 20)
    assert floors(programs, programs, SPEC).lost == ""


def test_a_strategy_under_which_the_base_guesses_has_nothing_to_lose() -> None:
    guessed = answered(["2"] * 24, RIGHT)
    found = floors(answered(RIGHT, RIGHT), guessed, SPEC)
    assert found.guessing == {"greedy": "the base is right on 3 of 24, the best constant answer on 3"}
    assert found.evidence(["greedy"]) == ["greedy"]
    assert found.compared(["greedy"]) == []


def test_a_penalty_on_the_format_of_the_prompt_is_no_evidence() -> None:
    base = pd.concat([answered(RIGHT, RIGHT), answered(RIGHT, RIGHT, FSD)])
    found = floors(base, base, SPEC, is_base=True)
    assert list(found.punished) == ["fsd"]
    assert "24 of 24 items" in found.punished["fsd"]
    questions = base.assign(prompt="What is seven times one?")
    assert floors(questions, questions, SPEC, is_base=True).punished == {}


@pytest.mark.parametrize(
    ("prompt", "text", "answer", "order", "expected"),
    [
        (PROMPT, " 7\n", "7", 2, True),  # "=" and a space
        ("3*1=3\n7*1=", "7\n", "7", 2, False),
        ("3*1=3\n7*1=", "3\n", "3", 2, True),
        ("So Ann lamp, Bob chair, Ann", " lamp", "lamp", 2, True),
        ("Ann has a lamp. What has Ann?", " A lamp", "lamp", 2, False),
        ("Ann has a lamp. What has Ann?", " A lamp", "lamp", 1, True),
        (PROMPT, " Let us see: one times seven is seven, which is 7", "7", 2, None),
        (PROMPT, " seven", "", 2, None),
    ],
)
def test_repeated_pieces_of_a_prompt(prompt: str, text: str, answer: str, order: int, expected: bool | None) -> None:
    assert repeats(prompt, text, answer, order) is expected


def test_penalties_are_read_from_settings() -> None:
    assert punished_order(FSD) == 2
    assert punished_order({"alpha": 0.6, "k": 5, "n": 3, "beta": 0.9}) == 2  # backs off to pairs
    assert punished_order({"alpha": 0.6, "k": 4}) == 2
    assert punished_order({"repetition_penalty": 1.1}) == 1
    assert punished_order({"no_repeat_ngram": 3, "repetition_penalty": 1.0}) == 3
    for harmless in (
        {"temperature": 0.7},
        {"alpha": 0.0, "k": 4},
        {"frequency_penalty": 1.0},
        {"alpha": 0.1, "beta": 0.5},
    ):
        assert punished_order(harmless) is None
