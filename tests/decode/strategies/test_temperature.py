"""Temperature: draws from flatter and steeper distributions."""

from __future__ import annotations

from typing import Any

import torch

from hemorrhage.decode.generation import generate
from tests.decode.literal import sample, strategy


def test_temperature_never_changes_the_top_token(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor]
) -> None:
    for temperature in (0.05, 0.7, 1.0, 1.5, 10.0):
        sample(model, prompt, "temperature", temperature=temperature)
    top = generate(strategy("greedy"), model, prompt, torch.ones_like(prompt), 1, strategy("greedy").Settings(), 0)
    assert {int(drawn.argmax()) for drawn in drawn_from} == {int(top)}
    entropy = [float(-torch.special.xlogy(p, p).sum()) for p in drawn_from]
    assert entropy == sorted(entropy)
