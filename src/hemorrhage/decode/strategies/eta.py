"""Eta sampling (arXiv 2210.15191): drop tokens with p(v) < eta = min(eps, sqrt(eps) * exp(-H(p))).

The most probable token always stays; temperature 1. The paper sweeps eps in 3e-4, 6e-4, 9e-4, 2e-3, 4e-3.
Default 6e-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts

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


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True, "eta_cutoff": settings.epsilon})
