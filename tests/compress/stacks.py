"""A tiny model whose blocks a method takes out or puts in, and where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.solvers.stack import sources
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load

TOKENS = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))


def altered(tiny: Path, method: Any, calibration: Path | None = None, seed: int = 0, **settings: Any) -> Any:
    model = load(tiny)
    stack: Any = blocks(model)
    for index, block in enumerate(stack):
        block.place = index
    statistics = Statistics(calibration) if calibration else None
    method.alter(model, method.Settings(**settings), Context(statistics, seed))
    return model


def places(model: PreTrainedModel) -> list[int]:
    """Which blocks of the base the blocks are; the manifest will say the same."""
    stack: Any = blocks(model)
    found = [block.place for block in stack]
    assert sources(model) == found
    return found
