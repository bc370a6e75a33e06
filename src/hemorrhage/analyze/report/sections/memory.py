"""Memory of the base and of what to ship while they work, by the formula of hemorrhage.models.memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.models.memory import Memory, Sizes, phases

LOADS = ((1, 2048), (16, 2048))
"""Texts at once and tokens of each, no more than the model's positions."""

ELEMENT = 2
"""Bytes of a number that is computed with."""


@dataclass(frozen=True)
class Row:
    """What a model takes in a phase; megabytes as text, a dash for what the phase does not have."""

    model: str
    phase: str
    load: str
    parameters: str
    cache: str
    activations: str
    gradients: str
    optimizer: str
    peak: str


def memory_rows(inputs: Inputs, picked: str | None) -> list[Row]:
    """Return rows of the base and of the variant that is ``picked``; none for families without a formula.

    Weights are as large as they are stored, which takes an engine that computes with them as they are.
    """
    rows = _rows("base", inputs.architecture, None)
    if picked is not None and rows:
        stored = inputs.variants[picked].manifest.get("disk_bytes")
        rows += _rows(picked, inputs.configs.get(picked) or inputs.architecture, stored) if stored else []
    return rows


def _rows(name: str, config: Mapping[str, Any], weights: int | None) -> list[Row]:
    sizes = Sizes.of(config)
    if sizes is None:
        return []
    longest = int(config.get("max_position_embeddings") or LOADS[0][1])
    loads = dict.fromkeys((batch, min(length, longest)) for batch, length in LOADS)
    return [
        _row(name, phase, (batch, length), taken)
        for batch, length in loads
        for phase, taken in phases(sizes, batch, length, ELEMENT, weights).items()
    ]


def _row(name: str, phase: str, load: tuple[int, int], taken: Memory) -> Row:
    parts: Sequence[int] = (
        taken.parameters, taken.cache, taken.activations, taken.gradients, taken.optimizer, taken.peak,
    )  # fmt: skip
    return Row(name, phase, f"{load[0]} × {load[1]:,}", *(f"{part / 1e6:,.0f}" if part else "–" for part in parts))
