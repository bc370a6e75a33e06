"""Masked weights are made when their layer computes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.compress.__main__ import compress
from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.masked import MaskedLinear
from hemorrhage.models.weights import Weights


def test_weights_of_one_block_are_in_float32_and_masked_ones_are_nowhere(
    base: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"sweep": "s", "method": "wanda", "settings": {"sparsity": 0.5}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, calibration, [], spec)
    model: Any = load(tmp_path / "v", base=base, streamed=True)
    masks = [module for module in model.modules() if isinstance(module, MaskedLinear)]
    assert len(masks) == 7 * len(blocks(model))
    assert not [value for mask in masks for value in mask.parameters()]
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []
    tensor = Weights.tensor

    def counted(self: Weights, name: str) -> torch.Tensor:
        value = tensor(self, name)
        if self.masked(name):
            made.append(weakref.ref(value))
            alive.append(sum(each() is not None for each in made))
        return value

    monkeypatch.setattr(Weights, "tensor", counted)
    monkeypatch.setattr(MaskedLinear, "dense", lambda self: self._weights.tensor(self._name))
    for block in blocks(model):
        block.float()
    blockwise.forward_batches(model, [torch.arange(8)[None], torch.arange(5)[None]])
    # One pass over the weights for both batches.
    assert len(made) == len(masks)
    assert max(alive) <= 8
