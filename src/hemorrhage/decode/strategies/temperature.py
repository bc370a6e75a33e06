"""Temperature sampling: draw from softmax(z / T), nothing truncated.

T below 1 sharpens the distribution, above 1 flattens it; the order of the tokens never changes. Default 0.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

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


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "temperature": settings.temperature})
