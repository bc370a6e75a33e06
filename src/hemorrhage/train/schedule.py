"""The learning rate along a training."""

from __future__ import annotations

import math
from typing import Literal, TypedDict


class Schedule(TypedDict):
    """``warmup`` and ``decay`` are shares of all steps, ``final`` a share of the peak; ``decay`` is that of wsd."""

    shape: Literal["cosine", "wsd", "constant"]
    warmup: float
    decay: float
    final: float


def rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """Return the learning rate of ``step`` of 0 ... ``steps`` - 1.

    It rises in a line to ``peak`` over the first steps, then follows its shape: half a cosine (arXiv 1608.03983), or
    stable and then decaying in a line (WSD, arXiv 2404.06395), down to ``final`` of the peak at the last step.
    """
    warmup = math.ceil(schedule["warmup"] * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    last = steps - 1
    if schedule["shape"] == "constant" or last <= warmup:
        return peak
    if schedule["shape"] == "cosine":
        done = (step - warmup) / (last - warmup)
        height = (1 + math.cos(math.pi * done)) / 2
    else:
        decaying = max(math.ceil(schedule["decay"] * steps), 1)
        height = min(1.0, (last - step) / decaying)
    return peak * (schedule["final"] + (1 - schedule["final"]) * height)
