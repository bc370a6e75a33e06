"""Settings of the analyze step."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """``resamples`` of every bootstrap, ``confidence`` of every interval, ``seed`` of both."""

    resamples: int
    confidence: float
    seed: int

    @classmethod
    def parse(cls, text: str) -> Spec:
        """The spec of a JSON string. Raises ValueError that names what is wrong."""
        content = json.loads(text)
        allowed = {"resamples": int, "confidence": float, "seed": int}
        for key in content:
            if key not in allowed:
                raise ValueError(f"--spec: {key} is unknown; allowed: {', '.join(allowed)}")
        for key in ("resamples", "confidence", "seed"):
            if not isinstance(content.get(key), (int, allowed[key])) or isinstance(content[key], bool):
                raise ValueError(f"--spec: {key} must be a number of type {allowed[key].__name__}")
        if content["resamples"] < 1 or not 0 < content["confidence"] < 1:
            raise ValueError("--spec: resamples must be at least 1, confidence between 0 and 1")
        return cls(**content)
