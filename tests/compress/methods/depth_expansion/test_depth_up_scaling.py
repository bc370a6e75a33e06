"""Tests of depth_up_scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import depth_up_scaling, duplication
from hemorrhage.compress.solvers.stack import sources
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


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


TOKENS = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))


def test_expansions_that_silence_nothing_change_the_model(tiny: Path) -> None:
    base = load(tiny)
    cases: list[tuple[Any, dict[str, Any]]] = [(duplication, {"added": 0.4}), (depth_up_scaling, {"overlap": 0.25})]
    for method, settings in cases:
        model = altered(tiny, method, **settings)
        with torch.no_grad():
            assert (model(TOKENS).logits - base(TOKENS).logits).abs().max() > 0.1


def test_order_of_the_expanded_blocks(tiny: Path) -> None:
    assert places(altered(tiny, duplication, added=0.4)) == [0, 1, 1, 2, 2, 3, 4]
    assert places(altered(tiny, duplication, added=0.4, scale=0.5)) == [0, 1, 1, 2, 2, 3, 4]
    assert places(altered(tiny, depth_up_scaling, overlap=0.25)) == [0, 1, 2, 3, 1, 2, 3, 4]
