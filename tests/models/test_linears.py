"""The linear layers that methods alter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import unfuse
from hemorrhage.models.linears import linears_of, uncalled_linears
from tests import tiny_mamba, tiny_moe


def test_all_seven_of_a_llamas_block_and_neither_embedding_nor_head(tiny: Path) -> None:
    model: Any = load(tiny)
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    found = linears_of(model)
    assert list(found) == [f"model.layers.{layer}.{part}" for layer in range(5) for part in parts]
    assert all(found[name] is model.get_submodule(name) for name in found)


def test_layers_that_nobody_calls_are_left_out() -> None:
    model = tiny_mamba.new_model()
    assert {name for _, name in uncalled_linears(model)} == {"dt_proj"}
    assert {name.rpartition(".")[2] for name in linears_of(model)} == {"in_proj", "x_proj", "out_proj"}


def test_every_matrix_of_every_expert_and_no_router() -> None:
    model = tiny_moe.new_model("mixtral")
    unfuse(model)
    assert uncalled_linears(model) == frozenset()
    names = [name.rpartition(".")[2] for name in linears_of(model)]
    assert {name: names.count(name) for name in ("w1", "w2", "w3", "q_proj")} == {
        "w1": 8, "w2": 8, "w3": 8, "q_proj": 2
    }  # fmt: skip
    assert "gate" not in names


def test_blocks_without_linear_layers_are_refused_unless_they_may_be_packed(tiny: Path) -> None:
    model: Any = load(tiny)

    class Packed(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight = linear.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight)

    for name, linear in linears_of(model).items():
        model.set_submodule(name, Packed(linear))
    assert linears_of(model, missing_ok=True) == {}
    with pytest.raises(ValueError, match="the decoder blocks of LlamaForCausalLM hold no linear layers"):
        linears_of(model)
