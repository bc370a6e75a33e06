"""Settings of the decode step, as they come on the command line."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    """Task items that have one right answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=1, description="Items drawn from the task.")
    new_tokens: int = Field(ge=1, description="Tokens generated for an answer, at most.")
    shots: int = Field(8, ge=0, description="Worked examples before a question, without chat template.")


class Open(BaseModel):
    """Documents to continue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=1, description="Evaluation documents drawn from the text.")
    prefix: int = Field(ge=1, description="Tokens of the document that are the prompt, or are to be summed up.")
    new_tokens: int = Field(ge=1, description="Tokens generated behind it, at most.")


class Spec(BaseModel):
    """What one decode job generates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Name -> {strategy: module of hemorrhage.decode, and its settings}."
    )
    closed: Closed
    open: Open
    chat: bool | None = Field(
        None, description="Questions and instructions through the tokenizer's chat template; null is where it has one."
    )
    batch: int = Field(ge=1, description="Prompts generated at once.")
    seed: int = Field(ge=0, description="Draws items, and tokens where a strategy samples.")
