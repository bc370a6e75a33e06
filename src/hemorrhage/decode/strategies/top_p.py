"""Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): draw from the smallest set with mass >= p.

The set holds the most probable tokens, in order, until their sum reaches p; temperature 1. Default 0.95.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

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


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "top_p": settings.p})
