"""A cell of the table: what a step does with a family, and why it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Answer = Literal["yes", "no", "part", "WRONG", "–"]


@dataclass(frozen=True)
class Cell:
    """``yes``: the numbers are right; ``no``: refused before any work; ``part``: some parts are left out and named."""

    answer: Answer
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one line."""
        return f"{self.answer}: {'; '.join(self.reasons)}" if self.reasons else self.answer


RIGHT = Cell("yes")

NOTHING = Cell("–")
"""The family has none of what the step alters."""


def refused(reason: str) -> Cell:
    """A step that says in one line, before any work, why it does not go with the model."""
    return Cell("no", (reason,))


def wrong(what: str) -> Cell:
    """Numbers that are not those of plain transformers, or a failure."""
    return Cell("WRONG", (what,))


def parts(gaps: Mapping[str, str]) -> Cell:
    """A step that leaves out the parts ``gaps``, each with its reason; right where it leaves out none."""
    of_reason: dict[str, list[str]] = {}
    for part, why in gaps.items():
        of_reason.setdefault(why, []).append(part)
    lines = tuple(f"{', '.join(names)}: {why}" for why, names in of_reason.items())
    return Cell("part", lines) if lines else RIGHT
