"""Settings of the analyze step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hemorrhage.analyze.budget import DAMAGE_KINDS


@dataclass(frozen=True)
class Spec:
    """Settings of the analysis.

    ``resamples`` of every bootstrap, ``confidence`` of every interval, ``seed`` of both. ``budget``: key of
    hemorrhage.analyze.budget.DAMAGE_KINDS -> the most damage that is tolerable. ``calibration``: the corpora that
    calibration read.
    """

    resamples: int
    confidence: float
    seed: int
    budget: dict[str, float] = field(default_factory=dict)
    calibration: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """The spec of a JSON string. Raises ValueError that names what is wrong."""
        content = json.loads(text)
        allowed = {"resamples": int, "confidence": float, "seed": int, "budget": dict, "calibration": list}
        for key in content:
            if key not in allowed:
                raise ValueError(f"--spec: {key} is unknown; allowed: {', '.join(allowed)}")
        for key in ("resamples", "confidence", "seed"):
            if not isinstance(content.get(key), (int, allowed[key])) or isinstance(content[key], bool):
                raise ValueError(f"--spec: {key} must be a number of type {allowed[key].__name__}")
        if content["resamples"] < 1 or not 0 < content["confidence"] < 1:
            raise ValueError("--spec: resamples must be at least 1, confidence between 0 and 1")
        budget = content.get("budget") or {}
        for key in budget:
            if key not in DAMAGE_KINDS:
                raise ValueError(f"--spec: budget.{key} is unknown; allowed: {', '.join(DAMAGE_KINDS)}")
        calibration = tuple(content.get("calibration") or ())
        limits = {key: limit for key, limit in budget.items() if limit is not None}
        return cls(**{**content, "budget": limits, "calibration": calibration})
