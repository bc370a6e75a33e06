"""Windows drawn from a text."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.calibrate.windows import draw


def test_windows_are_pieces_of_the_text_and_repeat_with_the_seed() -> None:
    text = torch.arange(1000, dtype=torch.int32)
    windows = draw(text, 20, 16, seed=1, leading=[])
    assert windows.shape == (20, 16)
    assert windows.dtype == torch.int32
    assert (windows.diff(dim=1) == 1).all()
    assert torch.equal(windows, draw(text, 20, 16, seed=1, leading=[]))
    assert not torch.equal(windows, draw(text, 20, 16, seed=2, leading=[]))


def test_bos_is_one_of_the_tokens_of_a_window() -> None:
    windows = draw(torch.arange(100, 200, dtype=torch.int32), 5, 16, seed=1, leading=[7])
    assert windows.shape == (5, 16)
    assert (windows[:, 0] == 7).all()
    assert (windows[:, 1:] >= 100).all()


def test_a_window_may_begin_with_several_tokens() -> None:
    windows = draw(torch.arange(100, 200, dtype=torch.int32), 5, 16, seed=1, leading=[7, 9])
    assert windows.shape == (5, 16)
    assert windows[:, :2].tolist() == [[7, 9]] * 5
    assert (windows[:, 2:] >= 100).all()


def test_a_text_of_exactly_one_window_is_enough_and_a_shorter_one_is_refused() -> None:
    text = torch.arange(16, dtype=torch.int32)
    assert torch.equal(draw(text, 1, 16, seed=0, leading=[])[0], text)
    with pytest.raises(ValueError, match=r"calibrate\.length: 17 tokens, but .* has only 16"):
        draw(text, 1, 17, seed=0, leading=[])
