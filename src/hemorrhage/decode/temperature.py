"""Temperature sampling: draw from softmax(z / T), nothing truncated.

T below 1 sharpens the distribution, above 1 flattens it; the order of the tokens never changes. Default 0.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Reading, continuation
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of temperature sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    temperature: float = Field(0.7, gt=0, le=10, description="T: divides the logits.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"temperature {self.temperature:g}"


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
        temperature=settings.temperature,
    )
