"""Tests of packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.packing import pack
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify


def spec(method: str, **settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": method, "settings": settings, "seed": 0}


def layer(rows: int = 12, columns: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, x.T @ x / len(x)


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
