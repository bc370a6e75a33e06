"""What texts cost and how they end, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.rows import answers
from hemorrhage.analyze.rows.answers import Sides, changes
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=300, confidence=0.95, seed=0)


def texts(length: Any, correct: Any = True, loops: Any = 0.0, cut: Any = False, items: int = 20) -> pd.DataFrame:
    """Texts of one strategy, an item each."""
    return pd.DataFrame(
        {
            "strategy": "greedy",
            "item": range(items),
            "draw": 0,
            "length": np.broadcast_to(np.asarray(length, float), items),
            "cut": cut,
            "loop_rate": np.broadcast_to(np.asarray(loops, float), items),
            "correct": np.broadcast_to(correct, items),
        }
    )


def test_tokens_are_compared_with_the_bases_by_right_and_wrong() -> None:
    lengths = 50.0 + np.arange(20)
    right = np.arange(20) < 12
    base, variant = texts(lengths), texts(np.where(right, lengths, 3 * lengths), right)
    found = dict(changes(Sides.of(base, variant), 0.25, True, "recall", SPEC))
    assert found["tokens_ratio{answer=right}"].estimate == 1
    assert found["tokens_ratio{answer=wrong}"].estimate == 3
    assert found["tokens_ratio{answer=wrong}"].n == 8
    whole = found["tokens_ratio"]
    assert whole.estimate == pytest.approx(np.where(right, lengths, 3 * lengths).sum() / lengths.sum())
    assert whole.low < whole.estimate < whole.high
    assert whole.p == pytest.approx(2 / 2**8)  # all eight that differ are longer
    assert found["bytes_ratio"].estimate == pytest.approx(whole.estimate / 4)
    assert "bytes_ratio" not in dict(changes(Sides.of(base, variant), np.nan, True, "recall", SPEC))


def test_where_the_limit_ends_most_texts_it_is_their_length() -> None:
    found = dict(changes(Sides.of(texts(16), texts(16, cut=True)), 0.25, False, "prose", SPEC))
    assert found["tokens_ratio"].status == "undefined"
    assert "20 reach their limit of tokens, 0 of the base's" in found["tokens_ratio"].reason
    assert found["bytes_ratio"].status == "undefined"


def test_loops_are_compared_where_texts_are_long_enough() -> None:
    looping = np.arange(20) < 9
    found = dict(changes(Sides.of(texts(128), texts(128, loops=looping)), 1.0, False, "prose", SPEC))
    change = found["loop_rate_change"]
    assert change.estimate == pytest.approx(9 / 20)
    assert change.p == pytest.approx(2 / 2**9)
    none = dict(changes(Sides.of(texts(128), texts(128)), 1.0, False, "prose", SPEC))["loop_rate_change"]
    assert none.p == 1
    # A share of 7.7 % of items shows in one of 20 four times out of five.
    assert none.mde == pytest.approx(1 - 0.2 ** (1 / 20))
    short = dict(changes(Sides.of(texts(16), texts(16)), 1.0, False, "prose", SPEC))["loop_rate_change"]
    assert short.reason == "texts of at most 16 tokens: loops show from 64 on"


def test_an_answer_that_is_reached_and_not_committed() -> None:
    columns = ("item", "text", "answer", "correct", "strict_correct")
    base = pd.DataFrame([(0, "It is 18.\n#### 18", "18", True, True), (1, "so 7", "7", False, False)], columns=columns)
    base["prompt"] = ""
    variant = pd.DataFrame(
        [
            (0, "2 + 16 = 18. But wait, is it 20? So 20", "20", False, False),
            (1, "it is 7", "7", False, False),
        ],
        columns=columns,
    ).assign(prompt="")
    assert answers.uncommitted(variant, base).tolist() == pytest.approx([1.0, np.nan], nan_ok=True)
    assert answers.uncommitted(base, base)[0] == 0
    assert answers.mentions("It costs $1,900.00 now", "1900")
    assert answers.mentions("The Red lamp, or the chair", "red lamp")
    assert not answers.mentions("The red and the lamp", "red lamp")
    assert not answers.mentions("118 or 181", "18")
