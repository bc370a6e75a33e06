"""The decoder blocks of a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from tests import tiny_mamba, tiny_moe


def test_blocks_are_the_modules_themselves_in_order(tiny: Path) -> None:
    model: Any = load(tiny)
    assert blocks(model) is model.model.layers
    assert len(blocks(model)) == model.config.num_hidden_layers
    assert len(blocks(tiny_mamba.new_model())) == 4
    assert len(blocks(tiny_moe.new_model("mixtral"))) == 2


@pytest.mark.parametrize("layers", [None, nn.Linear(1, 1), nn.ModuleList()])
def test_a_model_without_blocks_is_refused(layers: nn.Module | None) -> None:
    decoder: Any = nn.Module()
    decoder.layers = layers
    model: Any = SimpleNamespace(get_decoder=lambda: decoder)
    with pytest.raises(ValueError, match="SimpleNamespace has no stack of decoder blocks"):
        blocks(model)
