"""Epsilon sampling (arXiv 2210.15191): drop tokens with p(v) < epsilon.

The most probable token always stays; temperature 1. Default 3e-4, the lower of the paper's range for GPT-2
(3e-4 to 9e-4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

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


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "epsilon_cutoff": settings.epsilon})
