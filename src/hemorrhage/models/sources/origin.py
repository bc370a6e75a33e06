"""What a source says of the base model that it wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantized:
    """The form that a model's weights were quantized to before: its name, and the bytes that they take in it."""

    type: str
    bytes: int


@dataclass(frozen=True)
class Origin:
    """``note``: sentences on what the base is; ``quantized_before``: None for weights that were never quantized."""

    note: str
    quantized_before: Quantized | None = None
