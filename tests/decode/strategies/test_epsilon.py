"""Epsilon sampling: draws among tokens above a fixed probability."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, ranked


@pytest.mark.parametrize("epsilon", [3e-4, 0.05])
def test_tokens_above_the_cutoff_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], epsilon: float
) -> None:
    def kept(p: list[float]) -> set[int]:
        return {token for token, share in enumerate(p) if share >= epsilon} | {ranked(p)[0]}

    check_draws(model, prompt, drawn_from, "epsilon", kept, epsilon=epsilon)
