"""Beam search: the ``beams`` most probable sequences are kept at every step; the best one is returned.

Sequences are ranked by their log-probability over their length (length penalty 1) and the search ends when no
running beam can overtake the finished ones, transformers' defaults and those of arXiv 2402.06925, which
sweeps 4 and 8 beams. Default 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts, check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of beam search."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    deterministic: ClassVar[bool] = True

    beams: int = Field(4, ge=2, le=64, description="Sequences kept at every step.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"beam {self.beams}"


def parameters(model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    check_vocabulary(model, "beams", settings.beams)
    return Decoding({"num_beams": settings.beams})
