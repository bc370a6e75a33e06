"""Tests of qat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import qat, rtn
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.compress.mixture_training import FAMILIES, logits, same_layout, trained
from tests.divergence import kl
from tests.layers import layer_of

TOKENS = torch.randint(3, 500, (4, 16), generator=torch.Generator().manual_seed(0))


class Windows(Statistics):
    """Calibration windows in memory."""

    def __init__(self) -> None:
        pass

    def tokens(self) -> Tensor:
        return TOKENS


def test_straight_through_has_the_values_of_rtn_and_the_gradient_of_the_weights() -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    settings = qat.Settings(bits=3, group_size=4)
    rounded = qat.straight_through(weight, 4, settings, torch.float32)
    expected = rtn.quantize(weight.detach(), 4, settings, torch.float32).dense()
    torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-6)
    factors = torch.arange(96.0).view(6, 16)
    (gradient,) = torch.autograd.grad((rounded * factors).sum(), weight)
    assert torch.equal(gradient, factors)


def test_a_step_is_adamw_on_the_divergence_from_the_model_itself(tiny: Path) -> None:
    settings = qat.Settings(bits=3, group_size=4, steps=1, batch=4, learning_rate=1e-3)
    model, teacher = load(tiny), load(tiny)
    model.requires_grad_(False)
    weights = {name: linear.weight.detach().clone() for name, linear in linears_of(model).items()}
    before = {name: weight.clone() for name, weight in weights.items()}
    dtypes = dict.fromkeys(weights, torch.float32)
    qat.train(model, weights, dict.fromkeys(weights, 4), dtypes, settings, Context(Windows()))

    student = load(tiny)
    for name, linear in linears_of(student).items():
        linear.weight.data = rtn.quantize(before[name], 4, settings, torch.float32).dense()
    with torch.no_grad():
        p = teacher(TOKENS).logits.flatten(0, 1).log_softmax(-1)
    q = student(TOKENS).logits.flatten(0, 1).log_softmax(-1)
    loss = (p.exp() * (p - q)).sum(1).mean()
    name = "model.layers.2.mlp.up_proj"
    (gradient,) = torch.autograd.grad(loss, layer_of(student, name).weight)
    # The first step of AdamW goes by the gradients' signs, at the rate of a warm-up of one step.
    moved = weights[name].detach() - before[name]
    clear = gradient.abs() > 1e-4 * gradient.abs().max()
    assert (moved[clear].sign() == -gradient[clear].sign()).double().mean() > 0.99
    assert moved.abs().max() <= 1.001e-3


def test_zeros_stay_zero(tiny: Path) -> None:
    model = load(tiny)
    for linear in linears_of(model).values():
        linear.weight.data[:, ::2] = 0
    settings = qat.Settings(bits=3, group_size=4, steps=2, batch=2, keep_zeros=True)
    qat.alter(model, settings, Context(Windows()))
    assert not layer_of(model, "model.layers.1.mlp.up_proj").dense()[:, ::2].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_trained_and_stay_in_their_familys_layout(tmp_path: Path, family: str) -> None:
    made = trained(tmp_path, family, "qat", bits=8, group_size=8, steps=3, learning_rate=1e-6, batch=3)
    assert same_layout(made)
    assert kl(logits(made.original, made.tokens), logits(made.exported, made.tokens)) < 1e-3
