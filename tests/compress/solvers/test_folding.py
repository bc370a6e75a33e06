"""Tests of folding."""

from __future__ import annotations

from pathlib import Path

import torch

from hemorrhage.calibrate.statistics import shared_inputs
from hemorrhage.compress.solvers.folding import find_makers
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of


def test_makers_of_a_llama_are_its_norms_and_its_up_projection(tiny: Path) -> None:
    model = load(tiny)
    makers = find_makers(model, shared_inputs(model, torch.ones(1, 4)))
    for index in range(5):
        prefix = f"model.layers.{index}"
        assert makers[f"{prefix}.self_attn.q_proj"] == f"{prefix}.input_layernorm"
        assert makers[f"{prefix}.mlp.gate_proj"] == f"{prefix}.post_attention_layernorm"
        assert makers[f"{prefix}.mlp.down_proj"] == f"{prefix}.mlp.up_proj"
        # Two query heads share a head of values, so that the output projection's input has no maker.
        assert f"{prefix}.self_attn.o_proj" not in makers


def test_the_search_leaves_the_model_as_it_was(tiny: Path) -> None:
    model = load(tiny)
    before = {name: linear.weight.clone() for name, linear in linears_of(model).items()}
    find_makers(model, shared_inputs(model, torch.ones(1, 4)))
    assert all(torch.equal(linear.weight, before[name]) for name, linear in linears_of(model).items())
