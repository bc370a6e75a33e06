"""Contrastive search (arXiv 2202.06417, 2210.14140): a probable token whose state is unlike all before it.

V = the k most probable tokens; y = argmax over v in V of (1 - alpha) p(v) - alpha max_j cos(h_v, h_j), where
h_v is the final hidden state of candidate v and h_j that of every token so far, the prompt's included.
Defaults alpha = 0.6, k = 4. transformers has moved it out of the library; this is our own, with the cache
and one forward pass per step for all candidates of the batch, usable outside the bench:

    model.generate(**prompts, max_new_tokens=64, custom_generate=contrastive_search, alpha=0.6, candidates=4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hemorrhage.decode.generation import (
    Decoding,
    Prompts,
    check_vocabulary,
    forward,
    refuse_without_cache,
    repeat_rows,
    select_rows,
)
from hemorrhage.decode.search import Alpha, Candidates, Sequences, lengthen_mask, read_prompt
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList


class Settings(BaseModel):
    """Settings of contrastive search."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    alpha: Alpha = 0.6
    k: Candidates = 4

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"contrastive search α {self.alpha:g}, k {self.k}"


def parameters(model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    refuse_without_cache(model)
    check_vocabulary(model, "k", settings.k)
    return Decoding(search=contrastive_search, search_settings={"alpha": settings.alpha, "candidates": settings.k})


def contrastive_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Callable[..., torch.Tensor],
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    alpha: float = 0.6,
    candidates: int = 4,
    prompt_states: torch.Tensor | None = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Run the decoding loop of ``generate(custom_generate=contrastive_search)``.

    ``prompt_states`` [batch, cached, width] go with a ``past_key_values`` that already holds a part of the
    prompt. Returns int64 [batch, length], prompts included.
    """
    prompt = read_prompt(model, input_ids, model_kwargs, prompt_states)
    logits, mask, cache = prompt.logits, prompt.attention_mask, prompt.cache
    sequences = Sequences(input_ids, stopping_criteria, generation_config)
    batch, length, width = prompt.states.shape
    # Normalised once: a dot product with the unit states of the past is the cosine.
    past = logits.new_zeros(batch, generation_config.max_length, width)
    past[:, :length] = unit(prompt.states)
    repeat_rows(cache, candidates)
    while True:
        top = logits_processor(sequences.ids, logits).softmax(-1).topk(candidates)
        padding = mask == 0
        mask = lengthen_mask(mask)
        next_logits, states = forward(model, top.indices.reshape(-1, 1), mask.repeat_interleave(candidates, 0), cache)
        states = unit(states).view(batch, candidates, width)
        likeness = states @ past[:, :length].transpose(1, 2)
        penalty = likeness.masked_fill(padding[:, None], -1.0).amax(-1)
        choice = ((1 - alpha) * top.values - alpha * penalty).argmax(-1)
        if not sequences.append(top.indices.gather(1, choice[:, None])[:, 0]):
            return sequences.ids
        # The winner's row of the cache becomes the past of all candidates of the next step, in one copy.
        rows = torch.arange(batch, device=choice.device) * candidates + choice
        select_rows(cache, rows.repeat_interleave(candidates))
        logits = next_logits[rows, -1]
        past[:, length] = states.view(-1, width)[rows]
        length += 1


def unit(states: torch.Tensor) -> torch.Tensor:
    """``states`` [..., width] as float32 of length 1."""
    return torch.nn.functional.normalize(states.float(), dim=-1)
