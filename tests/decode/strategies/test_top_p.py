"""Nucleus sampling: draws among the fewest most probable tokens with a mass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, ranked, sample, until_mass


@pytest.mark.parametrize("p", [0.95, 0.5])
def test_the_fewest_tokens_with_the_mass_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], p: float
) -> None:
    def kept(shares: list[float]) -> set[int]:
        return until_mass(ranked(shares), shares, p)

    check_draws(model, prompt, drawn_from, "top_p", kept, p=p)


def test_a_tiny_mass_is_greedy_search(model: Any, prompt: torch.Tensor) -> None:
    assert torch.equal(
        sample(model, prompt, "top_p", new_tokens=16, p=1e-6), sample(model, prompt, "greedy", new_tokens=16)
    )
