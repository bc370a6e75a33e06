"""A base model's source: its entry in params.yaml, and what it says of the model that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Spec(TypedDict, total=False):
    """``model`` of params.yaml: the source, and ``name`` of a wheel's model, ``id`` and ``revision`` of the hub's,
    ``path`` of a folder; of one that is trained here ``recipe``, ``seed`` and ``tokens`` of it, ``path``, and ``at``,
    tokens after which it was kept."""

    source: str
    name: str
    id: str
    revision: str
    path: str
    recipe: str
    seed: int | None
    tokens: int | None
    at: int | None


@dataclass(frozen=True)
class Quantized:
    """The format that a model's weights were quantized to before: its name, and the bytes that they take in it."""

    type: str
    bytes: int


@dataclass(frozen=True)
class Origin:
    """``note``: sentences on what the base is; ``quantized_before``: None for weights that were never quantized."""

    note: str
    quantized_before: Quantized | None = None
