"""Assisted generation by the model itself (arXiv 2211.17192, 2404.16710): greedy search, a lossless control.

The first ``layers`` blocks with the last norm and the head draft ``draft`` tokens; one pass of the whole model
keeps those that greedy search would have chosen and adds one of its own. transformers' own
``assistant_early_exit``, which takes one text at a time. The text is that of greedy search but for ties that
a pass over several tokens rounds in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.early_exit import exit_layer
from hemorrhage.decode.generation import Reading, check, continuation, special_tokens
from hemorrhage.lazy import torch

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


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    settings: Settings,
    seed: int,
    reading: Reading | None = None,
) -> torch.Tensor:
    """Continuations int64 [batch, <= new_tokens] of left-padded prompts; see generation.continuation.

    ``reading`` is not used: draft and model start from caches of their own.
    """
    check(model, input_ids, attention_mask, new_tokens)
    layers = exit_layer(model, settings.layers)
    drafting = {
        "num_assistant_tokens": settings.draft,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    rows = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        alone = ids[mask != 0][None]
        rows.append(
            continuation(
                model,
                alone,
                torch.ones_like(alone),
                new_tokens,
                seed=seed,
                drafting=drafting,
                assistant_early_exit=layers,
            )[0]
        )
    padding = special_tokens(model)["pad_token_id"]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
