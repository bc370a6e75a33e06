"""Tests of magnitude."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import magnitude
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of


def test_magnitude_keeps_the_largest_of_a_layer(tiny: Path) -> None:
    model = load(tiny)
    before = {name: module.weight.detach().clone() for name, module in linears_of(model).items()}
    magnitude.alter(model, magnitude.Settings(sparsity=0.6), Context())
    for name, module in linears_of(model).items():
        gone = module.weight == 0
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
