"""Tests of wanda_plus."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import wanda, wanda_plus
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.compress.methods.unstructured_pruning.conftest import LENGTH, SAMPLES
from tests.layers import block_of, layer_of


def test_a_round_of_regional_optimization_is_rmsprop_on_the_blocks_error(
    tiny: Path, texts: Tensor, statistics: Statistics, calibration: Path, parts: dict[str, Path]
) -> None:
    class Single(Statistics):
        """One window, so that a round is one step and nothing is drawn."""

        def tokens(self) -> Tensor:
            return texts[:1]

    single = Single(calibration, parts)
    plain, optimized, rate = load(tiny), load(tiny), wanda_plus.LEARNING_RATE
    wanda_plus.alter(plain, wanda_plus.Settings(sparsity=0.5), Context(single))
    wanda_plus.alter(optimized, wanda_plus.Settings(sparsity=0.5, optimize=1), Context(single))

    seen: dict[str, Any] = {}
    dense = load(tiny)
    hook = block_of(dense, 0).register_forward_hook(
        lambda _, x, keywords, y: seen.update(x=x, keywords=keywords, y=y.detach()), with_kwargs=True
    )
    dense(texts[:1], use_cache=False)
    hook.remove()
    block = copy.deepcopy(blocks(plain)[0])
    names = [name for name in linears_of(plain) if name.startswith("model.layers.0.")]
    weights = [layer_of(block, name.removeprefix("model.layers.0.")).weight.requires_grad_() for name in names]
    loss = (block(*seen["x"], **seen["keywords"]) - seen["y"]).square().sum()
    groups = {name: first for first, group in single.shared().items() for name in group}
    for name, weight, gradient in zip(names, weights, torch.autograd.grad(loss, weights), strict=True):
        moved = weight.detach() - rate * gradient / ((0.01 * gradient.square()).sqrt() + 1e-8)
        gain = wanda_plus.importance(single.norms(groups[name]), single.local_gradient(name), LENGTH, 100)
        expected = moved.masked_fill(wanda.mask(moved, gain, wanda_plus.Settings(sparsity=0.5)), 0)
        found = linears_of(optimized)[name].weight
        torch.testing.assert_close(found, expected, rtol=0, atol=rate)
        assert (found != linears_of(plain)[name].weight).double().mean() > 0.3


def test_regional_optimization_brings_blocks_closer_to_the_dense_ones(
    tiny: Path, texts: Tensor, statistics: Statistics
) -> None:
    errors = []
    target = load(tiny)(texts[:SAMPLES], output_hidden_states=True).hidden_states[1]
    for rounds in (0, 2):
        model = load(tiny)
        wanda_plus.alter(model, wanda_plus.Settings(sparsity=0.6, optimize=rounds), Context(statistics))
        states = model(texts[:SAMPLES], output_hidden_states=True).hidden_states[1]
        errors.append((states - target).square().sum().item())
        for linear in linears_of(model).values():
            assert ((linear.weight == 0).sum(1) == round(0.6 * linear.in_features)).all()
    assert errors[1] < errors[0]
