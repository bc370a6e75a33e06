"""Assisted generation by the model itself (arXiv 2211.17192, 2404.16710): greedy search, a lossless control.

The first ``layers`` blocks with the last norm and the head draft ``draft`` tokens; one pass of the whole model
keeps those that greedy search would have chosen and adds one of its own. transformers' own
``assistant_early_exit``, which takes one text at a time. The text is that of greedy search but for ties that
a pass over several tokens rounds in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.early_exit import exit_layer, refuse_all_blocks
from hemorrhage.decode.generation import Decoding, Prompts, refuse_beyond_window, refuse_failing_drafts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of assisted generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    deterministic: ClassVar[bool] = True

    layers: int | None = Field(None, ge=1, description="Blocks that draft; null is half of the model's.")
    draft: int = Field(4, ge=1, description="Tokens drafted at once.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"assisted, {self.draft} tokens by {self.layers or 'half'}"


def parameters(model: PreTrainedModel, settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes.

    Raises RefusedError where the model can't leave out its last blocks, where a text is longer than a sliding window,
    which drafted tokens can't be taken back from, and where transformers fails to draft.
    """
    drafting: dict[str, int | float | str] = {
        "num_assistant_tokens": settings.draft,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    layers = exit_layer(model, settings.layers)
    refuse_all_blocks(model)
    longest = int(prompts.attention_mask.sum(1).max())
    refuse_beyond_window(model, longest + prompts.new_tokens + settings.draft)
    decoding = Decoding({"assistant_early_exit": layers}, drafting=drafting, one_by_one=True)
    refuse_failing_drafts(model, decoding)
    return decoding
