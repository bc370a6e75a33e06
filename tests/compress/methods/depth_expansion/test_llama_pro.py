"""Tests of llama_pro."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.compress.methods.depth_expansion import llama_pro
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated
from tests.compress.stacks import TOKENS, altered, places


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


@pytest.mark.parametrize("added", [0.2, 0.4, 1.0])
def test_llama_pro_is_the_base_exactly(tiny: Path, added: float) -> None:
    model = altered(tiny, llama_pro, added=added)
    assert len(blocks(model)) == 5 + round(5 * added)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, load(tiny)(TOKENS).logits)


def test_llama_pro_puts_a_copy_behind_every_so_many_blocks(tiny: Path) -> None:
    assert places(altered(tiny, llama_pro, added=0.2)) == [0, 1, 2, 3, 4, 4]
    assert places(altered(tiny, llama_pro, added=0.4)) == [0, 1, 1, 2, 3, 4, 4]
