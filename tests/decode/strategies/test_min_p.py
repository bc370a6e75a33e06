"""Min-p sampling: draws among tokens with a share of the greatest probability."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, sample


@pytest.mark.parametrize("p_base", [0.1])
def test_tokens_with_a_share_of_the_greatest_probability_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], p_base: float
) -> None:
    def kept(p: list[float]) -> set[int]:
        return {token for token, share in enumerate(p) if share >= p_base * max(p)}

    check_draws(model, prompt, drawn_from, "min_p", kept, p_base=p_base)


def test_a_share_of_one_is_greedy_search(model: Any, prompt: torch.Tensor) -> None:
    assert torch.equal(
        sample(model, prompt, "min_p", new_tokens=16, p_base=1.0), sample(model, prompt, "greedy", new_tokens=16)
    )
