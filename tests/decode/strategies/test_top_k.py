"""Top-k sampling: draws among the k most probable tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.decode.literal import check_draws, ranked, sample


@pytest.mark.parametrize("k", [50, 3])
def test_the_k_most_probable_tokens_are_drawn_from(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], k: int
) -> None:
    def kept(p: list[float]) -> set[int]:
        return set(ranked(p)[:k])

    check_draws(model, prompt, drawn_from, "top_k", kept, k=k)


def test_a_single_candidate_is_greedy_search(model: Any, prompt: torch.Tensor) -> None:
    assert torch.equal(
        sample(model, prompt, "top_k", new_tokens=16, k=1), sample(model, prompt, "greedy", new_tokens=16)
    )


def test_as_many_candidates_as_tokens_are_plain_sampling(model: Any, prompt: torch.Tensor) -> None:
    everything = sample(model, prompt, "top_k", new_tokens=16, k=model.config.vocab_size)
    assert torch.equal(everything, sample(model, prompt, "temperature", new_tokens=16, temperature=1.0))
