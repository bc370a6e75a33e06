"""Speed of products in bfloat16 and float32, measured, since a machine's name and flags do not tell it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from hemorrhage.runtime.artifact import environment

CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - there may be no HOME
REMEMBERED = Path(CACHE, "hemorrhage", "products.json")

SHAPES = ((256, 576, 1536), (256, 2048, 2048))
"""Tokens, inputs and outputs of the products that are timed: layers of a small and of a usual width."""


def speedup() -> float:
    """Return the ratio of products a second in bfloat16 to float32, on one thread; the smaller of SHAPES.

    Measured once for a processor and a version of torch, and remembered.
    """
    facts = environment()
    machine = f"{facts['machine']} {facts['torch']}"
    known = json.loads(REMEMBERED.read_text(encoding="utf-8")) if REMEMBERED.is_file() else {}
    if machine not in known:
        known[machine] = round(min(map(_measured, SHAPES)), 2)
        # Where HOME can't be written it is measured each time.
        with contextlib.suppress(OSError):
            _remember(known)
    return float(known[machine])


def _remember(known: dict[str, float]) -> None:
    REMEMBERED.parent.mkdir(parents=True, exist_ok=True)
    part = REMEMBERED.with_name(f"{REMEMBERED.name}.{os.getpid()}")
    part.write_text(json.dumps(known, indent=1), encoding="utf-8")
    part.replace(REMEMBERED)


def _measured(shape: tuple[int, int, int]) -> float:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tokens, inputs, outputs = shape
    seconds = {}
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(tokens, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
            trials = [_seconds(x, weight) for _ in range(7)]
            # The first prepares, and other work on the machine only ever adds.
            seconds[dtype] = min(trials[1:])
    finally:
        torch.set_num_threads(before)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _seconds(x: object, weight: object, times: int = 5) -> float:
    import torch

    began = time.thread_time()
    for _ in range(times):
        torch.nn.functional.linear(x, weight)  # type: ignore[arg-type]
    return time.thread_time() - began
