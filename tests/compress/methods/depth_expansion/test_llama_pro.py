"""Tests of llama_pro."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import llama_pro
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


@pytest.mark.parametrize("added", [0.2, 0.4, 1.0])
def test_llama_pro_is_the_base_exactly(tiny: Path, added: float) -> None:
    model = altered(tiny, llama_pro, added=added)
    assert len(blocks(model)) == 5 + round(5 * added)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, load(tiny)(TOKENS).logits)


def test_llama_pro_puts_a_copy_behind_every_so_many_blocks(tiny: Path) -> None:
    assert places(altered(tiny, llama_pro, added=0.2)) == [0, 1, 2, 3, 4, 4]
    assert places(altered(tiny, llama_pro, added=0.4)) == [0, 1, 1, 2, 3, 4, 4]
