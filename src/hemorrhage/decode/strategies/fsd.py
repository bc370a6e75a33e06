r"""Frustratingly simple decoding, vector form (arXiv 2305.12675): an anti-model of the text's own n-grams.

V = the k most probable tokens; y = argmax over v in V of (1 - alpha) p(v) - alpha pen(v). The anti-model has
a key and a value for every n-gram so far, the prompt's included: the final hidden states of its first n - 1
tokens, joined, and its last token. pen(v) = max over the keys whose value is v of the cosine of key and
query, clipped to 0..1, the query being the states of the last n - 1 tokens; 0 where v never was a value or
the text is shorter than n. Defaults n = 2, k = 3, alpha = 0.45 (the authors' code for English). It costs a
dot product with the past per token and no extra forward pass. The authors' program leaves line breaks unpenalized and
lets no text end: ``stop_words: ["\n", "\n\n"], ends: false``. Usable outside the bench:

    model.generate(**prompts, max_new_tokens=64, custom_generate=fsd, alpha=0.45, candidates=3, order=2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts, check_vocabulary, forward, refuse_without_cache
from hemorrhage.decode.search import (
    Alpha,
    Candidates,
    Ends,
    Exceptions,
    Sequences,
    StopWords,
    StopWordWeight,
    lengthen_mask,
    read_prompt,
)
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList


NO_EXCEPTIONS = Exceptions()


class Settings(BaseModel):
    """Settings of vector FSD."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    n: int = Field(2, ge=2, le=8, description="Length of the n-grams.")
    k: Candidates = 3
    alpha: Alpha = 0.45
    stop_words: StopWords = ()
    stop_word_weight: StopWordWeight = 0.0
    ends: Ends = True

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"FSD n {self.n}, k {self.k}, α {self.alpha:g}"


def parameters(model: PreTrainedModel, settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    refuse_without_cache(model)
    check_vocabulary(model, "k", settings.k)
    chosen = {
        "alpha": settings.alpha,
        "candidates": settings.k,
        "order": settings.n,
        "exceptions": Exceptions.of(model, settings, prompts),
    }
    return Decoding(search=fsd, search_settings=chosen)


def fsd(  # noqa: PLR0913, PLR0917 - what generate passes on by name
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Callable[..., torch.Tensor],
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    alpha: float = 0.45,
    candidates: int = 3,
    order: int = 2,
    exceptions: Exceptions = NO_EXCEPTIONS,
    prompt_states: torch.Tensor | None = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Run the decoding loop of ``generate(custom_generate=fsd)``; ``order`` is n.

    ``prompt_states`` [batch, cached, width] go with a ``past_key_values`` that already holds a part of the
    prompt. Returns int64 [batch, length], prompts included.
    """
    prompt = read_prompt(model, input_ids, model_kwargs, prompt_states)
    logits, mask, cache = prompt.logits, prompt.attention_mask, prompt.cache
    sequences = Sequences(input_ids, stopping_criteria, generation_config)
    anti = AntiModel(order, prompt.states, generation_config.max_length)
    while True:
        p, tokens = exceptions.candidates(logits_processor(sequences.ids, logits).softmax(-1), candidates)
        penalty = exceptions.weigh(anti.penalty(sequences.ids, mask, tokens), tokens)
        choice = ((1 - alpha) * p - alpha * penalty).argmax(-1, keepdim=True)
        if not sequences.append(tokens.gather(1, choice)[:, 0]):
            return sequences.ids
        mask = lengthen_mask(mask)
        next_logits, states = forward(model, sequences.ids[:, -1:], mask, cache)
        logits = next_logits[:, -1]
        anti.append(states)


class AntiModel:
    """The keys of the n-grams of a batch of texts: unit vectors [batch, length, (order - 1) * width].

    The key at position j joins the final hidden states of the ``order - 1`` tokens that end there. Its value
    is the token at j + 1, so that the key at the last position is the query.
    """

    def __init__(self, order: int, states: torch.Tensor, capacity: int) -> None:
        batch, self.length, width = states.shape
        self.span = order - 1
        # Zero states before the text are in place of what it lacks; `penalty` masks these keys.
        padded = torch.cat([states.new_zeros(batch, self.span - 1, width), states], dim=1).float()
        joined = torch.cat([padded[:, i : i + self.length] for i in range(self.span)], dim=-1)
        self.recent = padded[:, padded.shape[1] - self.span :]
        self.keys = joined.new_zeros(batch, capacity, joined.shape[-1])
        self.keys[:, : self.length] = torch.nn.functional.normalize(joined, dim=-1)

    def append(self, states: torch.Tensor) -> None:
        """Add the key that ends at the newest token; ``states`` [batch, 1, width] are that token's."""
        self.recent = torch.cat([self.recent[:, 1:], states.float()], dim=1)
        self.keys[:, self.length] = torch.nn.functional.normalize(self.recent.flatten(1), dim=-1)
        self.length += 1

    def penalty(self, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Penalty [batch, candidates] of ``tokens`` [batch, candidates] as continuations of ``ids``."""
        past = self.length - 1
        if past < self.span:
            return torch.zeros_like(tokens, dtype=torch.float32)
        likeness = (self.keys[:, :past] @ self.keys[:, past, :, None])[..., 0]
        # A key that starts left of the text joins padding: no such n-gram is there.
        whole = torch.zeros_like(likeness, dtype=torch.bool)
        whole[:, self.span - 1 :] = mask[:, : past - self.span + 1] != 0
        follows = (ids[:, None, 1:] == tokens[..., None]) & whole[:, None]
        return torch.where(follows, likeness[:, None], 0.0).amax(-1).clamp(0.0, 1.0)
