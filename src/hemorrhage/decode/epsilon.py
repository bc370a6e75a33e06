"""Epsilon sampling (arXiv 2210.15191): drop tokens with p(v) < epsilon.

The most probable token always stays; temperature 1. Default 3e-4, the lower of the paper's range for GPT-2
(3e-4 to 9e-4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Reading, continuation
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of epsilon sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    epsilon: float = Field(3e-4, gt=0, lt=1, description="Probability below which a token is dropped.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"epsilon {self.epsilon:g}"


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
    return continuation(
        model,
        input_ids,
        attention_mask,
        new_tokens,
        seed=seed,
        reading=reading,
        do_sample=True,
        epsilon_cutoff=settings.epsilon,
    )
