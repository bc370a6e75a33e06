"""Basis of the built-in decoding loops: the prompt's states, and sequences that grow by a token per step.

They are called by ``model.generate(custom_generate=...)``, which prepares the cache, the logits processors
and the stopping criteria.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hemorrhage.decode.generation import every_state, forward
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, StoppingCriteriaList

Alpha = Annotated[float, Field(ge=0, lt=1, description="Weight of the penalty; 0 is greedy search.")]
Candidates = Annotated[int, Field(ge=1, description="Candidates at every step.")]
"""Settings of searches for the best (1 - alpha) p(v) - alpha penalty(v) among the k most probable tokens."""


@dataclass
class Prompt:
    """A batch of prompts that the model has read wholly.

    ``logits`` [batch, vocabulary] of the next token, ``states`` [batch, length, width] final hidden states,
    ``attention_mask`` [batch, length], and the ``cache`` of all of it.
    """

    logits: torch.Tensor
    states: torch.Tensor
    attention_mask: torch.Tensor
    cache: Cache


def read_prompt(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    model_kwargs: Mapping[str, Any],
    prompt_states: torch.Tensor | None,
) -> Prompt:
    """Read what of the prompt the cache in ``model_kwargs`` does not hold yet.

    ``prompt_states`` [batch, cached, width] are the final hidden states of what it does hold: these searches
    compare with them, and a cache of keys and values cannot give them back.
    """
    cache = cache_of(model_kwargs)
    attention_mask: torch.Tensor = model_kwargs["attention_mask"]
    cached = cache.get_seq_length()
    known = 0 if prompt_states is None else prompt_states.shape[1]
    if cached != known:
        raise ValueError(
            f"past_key_values holds {cached} tokens and prompt_states the hidden states of {known}: pass "
            "both for the same tokens, or neither"
        )
    logits, states = forward(model, input_ids[:, cached:], attention_mask, cache)
    if prompt_states is not None:
        states = torch.cat([prompt_states, states], dim=1)
    return Prompt(logits[:, -1], states, attention_mask, cache)


def cache_of(model_kwargs: Mapping[str, Any]) -> Cache:
    """Return the cache that ``generate`` hands to a decoding loop. Raises ValueError where there is none."""
    cache: Cache | None = model_kwargs.get("past_key_values")
    if cache is None:
        raise ValueError("this search decodes with a cache: use_cache must be true")
    return cache


class Sequences:
    """A batch of token sequences [batch, length] that grow until each has met a stopping criterion."""

    def __init__(self, input_ids: torch.Tensor, criteria: StoppingCriteriaList, config: GenerationConfig) -> None:
        self.ids = input_ids
        self.criteria = criteria
        self.padding = 0 if config.pad_token_id is None else config.pad_token_id
        self.unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def append(self, tokens: torch.Tensor) -> bool:
        """Append ``tokens`` [batch], padding where a sequence has ended; return whether any is still growing."""
        tokens = torch.where(self.unfinished, tokens, self.padding)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        scores: Any = None  # as generate's own loops pass when nobody asked for scores
        self.unfinished = self.unfinished & ~self.criteria(self.ids, scores)
        return bool(self.unfinished.any())


def steps(
    model: PreTrainedModel, sequences: Sequences, model_kwargs: Mapping[str, Any]
) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]]:
    """Yield a forward pass for every token, over what the cache does not hold yet; ``sequences`` has grown in between.

    Yields the logits [batch, vocabulary] of the next token, the states [batch, n, width] of what was read, the
    embeddings' first and then each block's, and the attention mask [batch, length].
    """
    cache, mask = cache_of(model_kwargs), model_kwargs["attention_mask"]
    while True:
        logits, states = every_state(model, sequences.ids[:, cache.get_seq_length() :], mask, cache)
        yield logits[:, -1], states, mask
        mask = lengthen_mask(mask)


def lengthen_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return ``attention_mask`` [batch, length] with one more attended position."""
    return torch.cat([attention_mask, attention_mask.new_ones(len(attention_mask), 1)], dim=1)
