"""Windows of texts in segments: where they begin, and which tokens count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.data.texts.file import Segment
from hemorrhage.evaluate.segments import cut_segments, spread_evenly

TOKENS = torch.arange(100, 120, dtype=torch.int32)
SEGMENTS = pd.DataFrame({"tokens": [7, 3, 10], "category": ["a", "a", "b"]})


def mask(*positions: int) -> Tensor:
    scored = torch.zeros(len(TOKENS), dtype=torch.bool)
    scored[list(positions)] = True
    return scored


def test_windows_begin_where_a_segment_does_and_count_its_own_tokens_alone() -> None:
    cut = cut_segments(TOKENS, torch.ones(20, dtype=torch.bool), SEGMENTS, 5, "all", [1])
    assert cut.available == 6
    assert cut.windows.tolist() == [
        [1, 100, 101, 102, 103],
        # It goes on in the second segment, which is not counted.
        [1, 104, 105, 106, 107],
        [1, 107, 108, 109, 110],
        [1, 110, 111, 112, 113],
        [1, 114, 115, 116, 117],
        # What follows the last one is the first.
        [1, 118, 119, 100, 101],
    ]
    assert cut.scored.int().sum(1).tolist() == [4, 3, 3, 4, 4, 2]
    assert cut.scored[1].tolist() == [False, True, True, True, False]
    assert cut.categories == ["a", "a", "a", "b", "b", "b"]
    assert cut.windows.dtype == torch.int32


def test_without_a_token_in_front_the_first_one_is_not_predicted() -> None:
    cut = cut_segments(TOKENS, torch.ones(20, dtype=torch.bool), SEGMENTS, 5, "all", [])
    assert cut.windows[:, 0].tolist() == [100, 105, 107, 110, 115]
    assert cut.scored.int().sum(1).tolist() == [4, 1, 2, 4, 4]


def test_windows_without_a_scored_token_are_left_out() -> None:
    cut = cut_segments(TOKENS, mask(5, 12, 13, 19), SEGMENTS, 5, "all", [1])
    assert cut.windows[:, 1].tolist() == [104, 110, 118]
    scored = [window[counted].tolist() for window, counted in zip(cut.windows, cut.scored, strict=True)]
    assert scored == [[105], [112, 113], [119]]
    with pytest.raises(ValueError, match=r"^20 tokens make 3 windows of 5, not 4$"):
        cut_segments(TOKENS, mask(5, 12, 13, 19), SEGMENTS, 5, 4, [1])


def test_fewer_windows_are_spread_evenly() -> None:
    cut = cut_segments(TOKENS, torch.ones(20, dtype=torch.bool), SEGMENTS, 5, 3, [1])
    assert cut.windows[:, 1].tolist() == [100, 107, 114]
    assert cut.categories == ["a", "a", "b"]
    assert cut.available == 6


@pytest.mark.parametrize("leading", [[], [1], [1, 2]], ids=len)
@pytest.mark.parametrize("window", [4, 5, 9])
def test_the_text_step_counts_the_same_windows(leading: list[int], window: int) -> None:
    generator = np.random.default_rng(window)
    sizes = generator.integers(1, 30, size=40)
    scored = generator.random(sizes.sum()) < 0.1
    segments = pd.DataFrame({"tokens": sizes, "category": ""})
    tokens = torch.arange(int(sizes.sum()), dtype=torch.int32)
    cut = cut_segments(tokens, torch.tensor(scored), segments, window, "all", leading)
    parts = np.split(scored, np.cumsum(sizes)[:-1])
    first = 0 if leading else 1
    counted = sum(Segment(np.zeros(len(p), dtype=np.int32), p, "").windows(window - len(leading), first) for p in parts)
    assert cut.available == counted


def test_a_spread_avoids_the_windows_of_others() -> None:
    assert spread_evenly(12, 4) == [0, 3, 6, 9]
    fresh = spread_evenly(12, 4, [4, 2])
    assert fresh == [1, 4, 7, 10]
    assert spread_evenly(12, 99, [4, 2]) == [1, 2, 4, 5, 7, 8, 10, 11], "as many as are left"
    cut = cut_segments(TOKENS, torch.ones(20, dtype=torch.bool), SEGMENTS, 5, 99, [1], [3])
    assert cut.windows[:, 1].tolist() == [104, 110, 118]
