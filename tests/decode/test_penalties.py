"""Penalties: what the papers and OpenAI's definition say, whatever padding stands before a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from hemorrhage.decode.penalties import CountPenalty, NGramBlocking, RepetitionPenalty

PROMPT = 4

MADE: dict[str, Callable[[torch.Tensor], Any]] = {
    "repetition": lambda mask: RepetitionPenalty(1.5, mask),
    "counts": lambda mask: CountPenalty(0.5, 0.25, mask),
    "bigrams": lambda mask: NGramBlocking(2, mask),
    "tokens": lambda mask: NGramBlocking(1, mask),
}


def scores() -> torch.Tensor:
    return torch.randn(3, 13, generator=torch.Generator().manual_seed(1))


def context() -> torch.Tensor:
    return torch.randint(1, 7, (3, 11), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", MADE)
def test_padding_is_no_text(name: str) -> None:
    mask = torch.ones(3, PROMPT, dtype=torch.long)
    hidden, padding = torch.zeros(3, 2, dtype=torch.long), torch.tensor([[12, 12], [1, 2], [0, 0]])
    alone = MADE[name](mask)(context(), scores())
    behind = MADE[name](torch.cat([hidden, mask], 1))(torch.cat([padding, context()], 1), scores())
    assert torch.equal(alone, behind)
    assert not torch.equal(alone, scores())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_padding_they_are_transformers_own(n: int) -> None:
    mask = torch.ones(3, PROMPT, dtype=torch.long)
    blocked = NoRepeatNGramLogitsProcessor(n)(context(), scores())
    assert torch.equal(NGramBlocking(n, mask)(context(), scores()), blocked)
    penalized = RepetitionPenaltyLogitsProcessor(1.5)(context(), scores())
    assert torch.equal(RepetitionPenalty(1.5, mask)(context(), scores()), penalized)


def test_counts_are_of_what_was_generated() -> None:
    ids = torch.tensor([[5, 5, 3, 2, 3, 3, 4]])
    found = CountPenalty(0.5, 0.25, torch.ones(1, 3, dtype=torch.long))(ids, torch.zeros(1, 6))
    # Behind the prompt 5 5 3: 2 once, 3 twice, 4 once.
    assert found.tolist() == [[0.0, 0.0, -0.75, -1.25, -0.75, 0.0]]
