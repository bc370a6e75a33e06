"""Settings of the bracket step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Free:
    """A point that could be added to a curve: the sweep and its values there, and its severity."""

    sweep: str
    values: Mapping[str, str | float | int]
    severity: float


@dataclass(frozen=True)
class Curve:
    """A curve: the severity of each variant that params.yaml names, and what could be added by the name it would have.

    On the axis ``bits`` damage grows as the severity falls.
    """

    name: str
    axis: str
    listed: Mapping[str, float]
    free: Mapping[str, Free]

    @property
    def falls(self) -> bool:
        """Whether a smaller severity does more damage."""
        return self.axis == "bits"


@dataclass(frozen=True)
class Spec:
    """``budget``: kl and perplexity, where they are limited; ``allowance``: most points that may be added."""

    budget: Mapping[str, float]
    windows: int
    allowance: int
    curves: tuple[Curve, ...]

    @staticmethod
    def parse(text: str) -> Spec:
        """Parse a spec of JSON."""
        return _READER.validate_json(text)


_READER = TypeAdapter(Spec)
