"""Tests of packing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.packing import pack
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify
from tests.compress.made import spec


def test_a_damaged_checkpoint_is_noticed(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=4, group_size=4))
    model = load(out, base=tiny)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3] *= 1.5
    with pytest.raises(ValueError, match="reload differs by"):
        verify(model, out)
    with pytest.raises(ValueError, match="float32"):
        verify(model.bfloat16(), out)


def test_constant_words_are_refused() -> None:
    empty = Quantized(torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 1), None)
    with pytest.raises(ValueError, match="all packed words are the same"):
        pack("layer", empty, 4)
