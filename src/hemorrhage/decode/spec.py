"""Settings of the decode step, as they come on the command line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ClosedEnded(BaseModel):
    """A task whose items have right answers: a generated probe, worked problems of GSM8K, or a code task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    items: int = Field(ge=1, description="Items drawn from the task.")
    new_tokens: int = Field(ge=1, description="Tokens generated for an answer, at most.")
    shots: int = Field(8, ge=0, description="Worked examples before a question of GSM8K, without chat template.")


class OpenEnded(BaseModel):
    """Documents to continue, articles to sum up, or instructions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    items: int = Field(ge=1, description="Documents or items drawn.")
    prefix: int | None = Field(
        None,
        ge=1,
        description="Tokens of a document that are the prompt or to be summed up; null for instructions.",
    )
    new_tokens: int = Field(ge=1, description="Tokens generated, at most.")


class Limits(BaseModel):
    """What a program may take; see hemorrhage.sandbox.runner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(gt=0, description="Processor time of a program.")
    memory_mb: int = Field(ge=64, description="Address space of a program, MiB.")


class Spec(BaseModel):
    """What one decode job generates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Name -> {strategy: module of hemorrhage.decode, and its settings}."
    )
    closed_ended: list[ClosedEnded]
    open_ended: list[OpenEnded]
    code_tasks: Limits | None = Field(None, description="Of the programs that code tasks make a model write.")
    chat: bool | None = Field(
        None, description="Questions and instructions through the tokenizer's chat template; null is where it has one."
    )
    batch: int = Field(ge=1, description="Prompts generated at once.")
    draws: int = Field(1, ge=1, description="Texts of a prompt by each strategy that samples.")
    random_numbers: Literal["independent", "common"] = Field(
        "independent", description="Of strategies that sample, on the same prompt."
    )
    seed: int = Field(ge=0, description="Draws items, and tokens where a strategy samples.")
