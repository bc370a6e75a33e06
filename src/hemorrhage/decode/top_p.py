"""Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): draw from the smallest set with mass >= p.

The set holds the most probable tokens, in order, until their sum reaches p; temperature 1. Default 0.95.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Reading, continuation
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of nucleus sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    p: float = Field(0.95, gt=0, lt=1, description="Probability mass kept.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"top-p {self.p:g}"


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
        top_p=settings.p,
    )
