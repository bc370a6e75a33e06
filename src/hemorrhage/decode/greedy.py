"""Greedy search: the most probable token at every step, y_t = argmax_v p(v | y_<t). No parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from hemorrhage.decode.generation import Reading, continuation
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Greedy search has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    deterministic: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "greedy"


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    settings: Settings,
    seed: int,
    reading: Reading | None = None,
) -> torch.Tensor:
    """Continuations int64 [batch, <= new_tokens] of left-padded prompts; see generation.continuation."""
    return continuation(model, input_ids, attention_mask, new_tokens, seed=seed, reading=reading)
