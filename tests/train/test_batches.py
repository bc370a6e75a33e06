"""Windows of the text: each once before any comes again, in the shares that were asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hemorrhage.runtime.step import InputError
from hemorrhage.train.batches import Windows


def made(docs: float = 0.25, code: float = 0.75, seed: int = 0) -> Windows:
    tokens = {"docs": np.arange(8 * 10 + 1, dtype=np.int32), "code": 1000 + np.arange(8 * 30 + 1, dtype=np.int32)}
    return Windows(tokens, {"docs": docs, "code": code}, 8, seed)


def test_each_window_is_read_once_in_a_round() -> None:
    begins = made().batch(0, 120)[:, 0].tolist()
    for windows in ([*range(0, 80, 8)], [*range(1000, 1240, 8)]):
        read = [begin for begin in begins if begin in windows]
        first, second = read[: len(windows)], read[len(windows) : 2 * len(windows)]
        assert sorted(first) == sorted(second) == windows
        assert first != second


def test_a_window_goes_on_to_the_token_that_its_last_one_predicts() -> None:
    for window in made().batch(0, 20):
        assert window.tolist() == list(range(window[0], window[0] + 9))


def test_shares_hold_at_every_time() -> None:
    windows = made(0.3, 0.7).batch(0, 200)
    for count in (10, 50, 200):
        of_docs = Counter(bool(window[0] < 1000) for window in windows[:count])[True]
        assert abs(of_docs - 0.3 * count) <= 2


def test_any_step_may_be_the_first() -> None:
    whole = made().batch(0, 120)
    assert np.array_equal(made().batch(77, 13), whole[77:90])
    assert not np.array_equal(made(seed=1).batch(0, 120), whole)


def test_a_part_without_a_share_is_not_read() -> None:
    assert made(1.0, 0.0).batch(0, 30).max() < 1000


def test_a_part_without_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="recipes: corpus docs has 5 tokens, a window 9"):
        Windows({"docs": np.zeros(5, dtype=np.int32)}, {"docs": 1.0}, 8, 0)
