"""Top-k sampling (Fan et al. 2018, arXiv 1805.04833): draw among the k most probable tokens.

Temperature 1. Default k = 50, transformers' own; the paper used 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts, check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of top-k sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    k: int = Field(50, ge=1, description="Tokens kept.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"top-k {self.k}"


def parameters(model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    check_vocabulary(model, "k", settings.k)
    return Decoding({"do_sample": True, "top_k": settings.k})
