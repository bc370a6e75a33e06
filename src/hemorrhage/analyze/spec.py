"""Settings of the analyze step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hemorrhage.analyze.budget import DAMAGE_KINDS


@dataclass(frozen=True)
class Spec:
    """Settings of the analysis.

    ``resamples`` of every bootstrap, ``confidence`` of every interval, ``seed`` of both. ``budget``: key of
    hemorrhage.analyze.budget.DAMAGE_KINDS -> the most damage that is tolerable. ``calibration``: the corpora that
    calibration read. ``smallest_effect``: the smallest share of a damage whose recovery by a mitigation matters.
    """

    resamples: int
    confidence: float
    seed: int
    budget: dict[str, float] = field(default_factory=dict)
    calibration: tuple[str, ...] = ()
    smallest_effect: float = 0.1

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Parse a spec of JSON. Raises ValueError that names what is wrong."""
        content = json.loads(text)
        allowed = [field.name for field in fields(cls)]
        for key in content:
            if key not in allowed:
                raise ValueError(f"--spec: {key} is unknown; allowed: {', '.join(allowed)}")
        resamples, confidence, seed = (_number(content, key) for key in ("resamples", "confidence", "seed"))
        if resamples < 1 or not 0 < confidence < 1:
            raise ValueError("--spec: resamples must be at least 1, confidence between 0 and 1")
        budget = content.get("budget") or {}
        for key in budget:
            if key not in DAMAGE_KINDS:
                raise ValueError(f"--spec: budget.{key} is unknown; allowed: {', '.join(DAMAGE_KINDS)}")
        return cls(
            resamples=int(resamples),
            confidence=confidence,
            seed=int(seed),
            budget={key: limit for key, limit in budget.items() if limit is not None},
            calibration=tuple(content.get("calibration") or ()),
            smallest_effect=content.get("smallest_effect", cls.smallest_effect),
        )


def _number(content: Mapping[str, Any], key: str) -> float:
    value, wanted = content.get(key), "float" if key == "confidence" else "int"
    if type(value) is int or (wanted == "float" and type(value) is float):
        return value
    raise ValueError(f"--spec: {key} must be a number of type {wanted}")
