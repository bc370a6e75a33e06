"""Assisted generation: drafts change the cost of a text and not the text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import generate
from hemorrhage.decode.strategies import assisted, greedy
from hemorrhage.models.refused import RefusedError
from tests.decode.literal import padded
from tests.families import new_model


@pytest.mark.parametrize(("layers", "draft"), [(1, 2), (4, 7)])
def test_any_draft_gives_the_text_of_greedy_search(
    model: Any, prompts: list[list[int]], layers: int, draft: int
) -> None:
    settings = assisted.Settings(layers=layers, draft=draft)
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    assert torch.equal(generate(assisted, model, *padded(prompts), 24, settings, 0), greedily)


def test_a_draft_saves_passes_of_the_whole_model(model: Any, prompts: list[list[int]]) -> None:
    """The last block runs once for several tokens where the first ones foresee them."""

    def passes(strategy: Any, settings: Any) -> int:
        seen: list[None] = []
        hook = model.model.layers[-1].register_forward_hook(lambda *_: seen.append(None))
        try:
            generate(strategy, model, *padded(prompts[2:]), 24, settings, 0)
        finally:
            hook.remove()
        return len(seen)

    assert passes(assisted, assisted.Settings(layers=4, draft=4)) < passes(greedy, greedy.Settings())


def test_a_text_that_fills_a_sliding_window_is_refused(prompts: list[list[int]]) -> None:
    """Gemma 2's window of 8 tokens takes a prompt of 2 with 2 new ones and 3 drafted, and no more."""
    model = new_model("gemma2").float()
    short, settings = padded([[5, 6]]), assisted.Settings(layers=2, draft=3)
    greedily = generate(greedy, model, *short, 2, greedy.Settings(), 0)
    assert torch.equal(generate(assisted, model, *short, 2, settings, 0), greedily)
    with pytest.raises(RefusedError, match="a sliding window that is full, here of 8 tokens"):
        generate(assisted, model, *short, 3, settings, 0)
