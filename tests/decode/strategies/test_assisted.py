"""Assisted generation: drafts change the cost of a text and not the text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import generate
from hemorrhage.decode.strategies import assisted, greedy
from tests.decode.literal import padded


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
