"""Contrastive decoding (arXiv 2210.15097): what an expert knows and an amateur does not.

Among the tokens with p(v) >= alpha max p under the expert: y = argmax over v of (1 + beta) z(v) - beta z_a(v),
with the logits z of the expert and z_a of the amateur, the form of arXiv 2309.09117, without temperatures.
Defaults alpha = 0.1, beta = 0.5 (arXiv 2402.06925); beta = 0 is greedy search. The original searches with 5
beams and a score ln p - ln p_a, which is this one as beta grows. The amateur is the model itself ended after
its first ``layers`` blocks, at no cost but its head, or a smaller model of the same vocabulary. Usable
outside the bench:

    model.generate(**prompts, max_new_tokens=64, custom_generate=contrastive_decoding, beta=0.5, layers=8)
    model.generate(**prompts, max_new_tokens=64, custom_generate=contrastive_decoding, beta=0.5, amateur=small)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hemorrhage.decode.early_exit import early_logits, exit_layer, implausible_tokens
from hemorrhage.decode.generation import Decoding, Prompts, check_context, forward, refuse_without_cache
from hemorrhage.decode.search import Sequences, steps
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList


class Settings(BaseModel):
    """Settings of contrastive decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    alpha: float = Field(0.1, gt=0, le=1, description="A plausible token has at least alpha times the top probability.")
    beta: float = Field(0.5, ge=0, description="Weight of the amateur; 0 is greedy search.")
    layers: int | None = Field(None, ge=1, description="Blocks of the amateur; null is half of the model's.")
    amateur: str | None = Field(None, description="Folder of a checkpoint that is the amateur instead.")

    @model_validator(mode="after")
    def _one_amateur(self) -> Settings:
        if self.layers is not None and self.amateur is not None:
            raise ValueError("layers and amateur name two amateurs: give one of them")
        return self

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        amateur = self.amateur and Path(self.amateur).name
        return f"contrastive decoding β {self.beta:g}, amateur {amateur or self.layers or 'half'}"


def parameters(model: PreTrainedModel, settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes.

    Raises ValueError where the amateur has another vocabulary or is no smaller part of the model.
    """
    refuse_without_cache(model)
    chosen: dict[str, object] = {"alpha": settings.alpha, "beta": settings.beta}
    if settings.amateur is None:
        chosen["layers"] = exit_layer(model, settings.layers)
    else:
        amateur = _load_amateur(settings.amateur)
        check_amateur(model, amateur)
        longest = int(prompts.attention_mask.sum(1).max())
        check_context(amateur, longest, prompts.new_tokens, "prompts for the amateur")
        chosen["amateur"] = amateur
    return Decoding(search=contrastive_decoding, search_settings=chosen)


def contrastive_decoding(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Callable[..., torch.Tensor],
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    alpha: float = 0.1,
    beta: float = 0.5,
    layers: int | None = None,
    amateur: PreTrainedModel | None = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Run the decoding loop of ``generate(custom_generate=contrastive_decoding)``.

    ``amateur`` None is the model's first ``layers`` blocks, None of these half of them. Returns int64
    [batch, length], prompts included.
    """
    from transformers import DynamicCache

    sequences = Sequences(input_ids, stopping_criteria, generation_config)
    if amateur is None:
        last = exit_layer(model, layers)
    else:
        check_amateur(model, amateur)
        cache = DynamicCache(config=amateur.config.get_text_config(decoder=True))
    for logits, states, mask in steps(model, sequences, model_kwargs):
        if amateur is None:
            weaker = early_logits(model, states[last][:, -1:])[:, -1]
        else:
            weaker = forward(amateur, sequences.ids[:, cache.get_seq_length() :], mask, cache)[0][:, -1]
        scores = (1 + beta) * logits - beta * weaker
        scores = logits_processor(sequences.ids, scores.masked_fill(implausible_tokens(logits, alpha), -torch.inf))
        if not sequences.append(scores.argmax(-1)):
            break
    return sequences.ids


def check_amateur(model: PreTrainedModel, amateur: PreTrainedModel) -> None:
    """Raise ValueError unless both models have a vocabulary of one size."""
    sizes = [side.config.get_text_config(decoder=True).vocab_size for side in (model, amateur)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"amateur: its vocabulary has {sizes[1]} tokens, the model's {sizes[0]}")


@functools.cache
def _load_amateur(folder: str) -> PreTrainedModel:
    # Once per process: the sweep calls `generate` for every batch.
    from hemorrhage.models.checkpoint import load

    if not Path(folder, "config.json").is_file():
        raise ValueError(f"amateur: no checkpoint at {folder}")
    return load(Path(folder))
