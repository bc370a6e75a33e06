"""Locally typical sampling (arXiv 2202.00666): draw among tokens whose surprise is near the entropy.

Tokens are sorted by |-ln p(v) - H(p)| and the smallest set with mass >= tau is kept, temperature 1. The
most probable token may be dropped. The paper sweeps tau in 0.2, 0.9, 0.92, 0.95. Default 0.95.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of typical sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    tau: float = Field(0.95, gt=0, lt=1, description="Probability mass kept.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"typical {self.tau:g}"


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "typical_p": settings.tau})
