"""Eta sampling (arXiv 2210.15191): drop tokens with p(v) < eta = min(eps, sqrt(eps) * exp(-H(p))).

The most probable token always stays; temperature 1. The paper sweeps eps in 3e-4, 6e-4, 9e-4, 2e-3, 4e-3.
Default 6e-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Reading, continuation
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of eta sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    epsilon: float = Field(6e-4, gt=0, lt=1, description="eps of the cutoff.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"eta {self.epsilon:g}"


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
        eta_cutoff=settings.epsilon,
    )
