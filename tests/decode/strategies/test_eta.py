"""Eta sampling: the cutoff falls with the entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, entropy_of, ranked


@pytest.mark.parametrize("epsilon", [6e-4, 0.1])
def test_tokens_above_the_cutoff_of_the_entropy_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], epsilon: float
) -> None:
    def kept(p: list[float]) -> set[int]:
        cutoff = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy_of(p)))
        return {token for token, share in enumerate(p) if share >= cutoff} | {ranked(p)[0]}

    check_draws(model, prompt, drawn_from, "eta", kept, epsilon=epsilon)
