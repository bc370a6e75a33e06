"""Basis of the built-in decoding loops: the prompt's states, and sequences that grow by a token per step.

They are called by ``model.generate(custom_generate=...)``, which prepares the cache, the logits processors
and the stopping criteria.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from hemorrhage.decode.generation import Prompts, end_tokens, every_state, forward
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

Alpha = Annotated[float, Field(ge=0, lt=1, description="Weight of the penalty; 0 is greedy search.")]
Candidates = Annotated[int, Field(ge=1, description="Candidates at every step.")]
"""Settings of searches for the best (1 - alpha) p(v) - alpha penalty(v) among the k most probable tokens."""


StopWords = Annotated[tuple[str, ...], Field(description="Tokens whose penalty is weighed by stop_word_weight.")]
StopWordWeight = Annotated[float, Field(ge=0, description="Of the penalty of stop words; 0 is no penalty.")]
Ends = Annotated[bool, Field(description="Whether a text may end before its last token.")]
"""Settings of FSD's authors: a line break, of which a text needs many, and texts of one length."""


class StopWordSettings(Protocol):
    """Settings with stop words."""

    stop_words: StopWords
    stop_word_weight: StopWordWeight
    ends: Ends


@dataclass(frozen=True)
class Exceptions:
    """What FSD treats otherwise: ``weights`` [vocabulary] multiply the penalty, and tokens ``excluded`` are no
    candidates."""

    weights: torch.Tensor | None = None
    excluded: Sequence[int] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, settings: StopWordSettings, prompts: Prompts) -> Exceptions:
        """Return what ``settings`` ask for. Raises ValueError where none of the stop words is a token."""
        excluded = [] if settings.ends else sorted(end_tokens(model))
        if not settings.stop_words:
            return cls(None, excluded)
        if prompts.tokenizer is None:
            raise ValueError("stop_words: a tokenizer is wanted to find them")
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        weights = torch.ones(vocabulary, device=model.device)
        weights[_tokens_of(prompts.tokenizer, settings.stop_words, vocabulary)] = settings.stop_word_weight
        return cls(weights, excluded)

    def candidates(self, probabilities: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest of ``probabilities`` [batch, vocabulary] and their tokens, both [batch, number].

        What is excluded leaves the others their probabilities, as in the authors' program.
        """
        if self.excluded:
            tokens = torch.tensor(self.excluded, device=probabilities.device)
            probabilities = probabilities.index_fill(-1, tokens, -torch.inf)
        top = probabilities.topk(number)
        return top.values, top.indices

    def weigh(self, penalty: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the penalty [batch, candidates] of ``tokens`` [batch, candidates], less where they are stop words."""
        return penalty if self.weights is None else penalty * self.weights[tokens]


def _tokens_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], vocabulary: int) -> list[int]:
    """Return the tokens whose whole text is one of ``words``."""
    texts = tokenizer.batch_decode(
        [[token] for token in range(min(vocabulary, len(tokenizer)))], clean_up_tokenization_spaces=False
    )
    tokens = [token for token, text in enumerate(texts) if text in words]
    if not tokens:
        raise ValueError(f"stop_words: {list(words)}: none is a token of this model")
    return tokens


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
