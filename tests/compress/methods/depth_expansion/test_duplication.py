"""Tests of duplication."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.compress.methods.depth_expansion import duplication
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated
from tests.compress.stacks import TOKENS, altered, places


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


def test_scaled_copies_add_a_part_of_what_their_blocks_add(tiny: Path) -> None:
    """Scale 0 is the base exactly, 1 is naive duplication, between them only the copies' outputs shrink."""
    with torch.no_grad():
        base = load(tiny)(TOKENS).logits
        assert torch.equal(altered(tiny, duplication, added=0.6, scale=0.0)(TOKENS).logits, base)
        naive = altered(tiny, duplication, added=0.6)
        model = altered(tiny, duplication, added=0.6, scale=0.3)
        damage = [(m(TOKENS).logits - base).abs().mean() for m in (model, naive)]
    assert 0 < damage[0] < damage[1]
    copies = [index for index in range(1, 8) if places(model)[index] == places(model)[index - 1]]
    assert copies == [2, 4, 6]
    for name, parameter in model.named_parameters():
        scaled = name.startswith(tuple(f"model.layers.{index}." for index in copies)) and (
            "o_proj" in name or "down_proj" in name
        )
        other = naive.get_parameter(name)
        torch.testing.assert_close(parameter, other * 0.3 if scaled else other, rtol=1e-6, atol=0)
