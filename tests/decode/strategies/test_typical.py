"""Typical sampling: draws among the tokens whose surprise is nearest the entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, entropy_of, until_mass


@pytest.mark.parametrize("tau", [0.95, 0.2])
def test_the_tokens_nearest_the_entropy_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], tau: float
) -> None:
    def kept(p: list[float]) -> set[int]:
        entropy = entropy_of(p)
        return until_mass(sorted(range(len(p)), key=lambda token: abs(-math.log(p[token]) - entropy)), p, tau)

    check_draws(model, prompt, drawn_from, "typical", kept, tau=tau)
