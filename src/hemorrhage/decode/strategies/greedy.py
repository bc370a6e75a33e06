"""Greedy search: the most probable token at every step, y_t = argmax_v p(v | y_<t). No parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from hemorrhage.decode.generation import Decoding, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Greedy search has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    deterministic: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "greedy"


def parameters(_model: PreTrainedModel, _settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding()
