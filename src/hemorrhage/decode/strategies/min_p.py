"""Min-p sampling (arXiv 2407.01082): draw among tokens with p(v) >= p_base * max p, at temperature 1.

The most probable token always stays. The paper recommends p_base 0.05 to 0.1. Default 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of min-p sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    p_base: float = Field(0.1, gt=0, le=1, description="Share of the top probability a token needs.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"min-p {self.p_base:g}"


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "min_p": settings.p_base})
