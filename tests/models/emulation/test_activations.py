"""Inputs that are rounded as a layer computes, against grids written out and compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import nn

from hemorrhage.models.emulation.activations import (
    STRATEGIES,
    InputRounding,
    exact,
    is_exact,
    quantization_args,
    rounding_of,
    scale_of,
)
from hemorrhage.models.formats import config

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 16)


@pytest.mark.parametrize("bits", [4, 8])
def test_values_lie_on_the_grid_of_their_token_or_tensor(bits: int) -> None:
    half = 2 ** (bits - 1)
    for over, tensors in (("token", list(X.flatten(0, 1))), ("tensor", [X])):
        found = InputRounding(bits, over).round(X)
        parts = list(found.flatten(0, 1)) if over == "token" else [found]
        for x, y in zip(tensors, parts, strict=True):
            step = 2 * float(x.abs().max()) / (2**bits - 1)
            codes = [min(max(round(float(value) / step), -half), half - 1) for value in x.flatten()]
            torch.testing.assert_close(y.flatten(), torch.tensor(codes) * step, rtol=1e-4, atol=1e-5)


def test_a_fixed_scale_is_used_whatever_comes() -> None:
    found = InputRounding(8, "static", 0.5).round(torch.tensor([[0.2, 0.3, 70.0, -70.0]]))
    assert found.tolist() == [[0.0, 0.5, 63.5, -64.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_tokens_are_rounded_as_compressed_tensors_rounds_them(bits: int) -> None:
    args = QuantizationArgs(**quantization_args(InputRounding(bits, "token")))
    low, high = X.amin(-1, keepdim=True), X.amax(-1, keepdim=True)
    scale, zero = calculate_qparams(low, high, args)
    torch.testing.assert_close(InputRounding(bits, "token").round(X), fake_quantize(X, scale, zero, args))


def test_zeros_stay_zeros_and_nothing_stays_nothing() -> None:
    assert scale_of(torch.tensor(0.0), 8) > 0
    for over in ("token", "tensor"):
        assert InputRounding(8, over).round(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2
    assert InputRounding(8, "tensor").round(torch.empty(0, 4)).shape == (0, 4)
    assert InputRounding(8, "token").round(X.bfloat16()).dtype == torch.bfloat16


def test_a_layer_computes_with_rounded_inputs_but_within_exact() -> None:
    layer = nn.Linear(16, 3, bias=False)
    expected, rounding = layer(X), InputRounding(3, "token")
    layer.register_forward_pre_hook(rounding)
    with torch.no_grad():
        torch.testing.assert_close(layer(X), nn.functional.linear(rounding.round(X), layer.weight))
        assert not torch.allclose(layer(X), expected, atol=1e-2)
        with exact():
            assert is_exact()
            torch.testing.assert_close(layer(X), expected)
            with exact():
                pass
            assert is_exact(), "the outer block goes on"
        assert not is_exact()


@pytest.mark.parametrize("over", STRATEGIES)
def test_the_configuration_describes_the_rounding_and_gives_it_back(over: str) -> None:
    rounding = InputRounding(8, over, 0.25 if over == "static" else None)
    scale = torch.tensor([0.25]) if over == "static" else None
    assert rounding_of("layer", quantization_args(rounding), scale) == rounding


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({"strategy": "group"}, None),
        ({"symmetric": False}, None),
        ({"type": "float"}, None),
        ({}, 0.5),
        ({"dynamic": False, "strategy": "tensor"}, None),
    ],
)
def test_what_this_bench_never_writes_is_refused(change: config.QuantizationArgs, scale: float | None) -> None:
    arguments: config.QuantizationArgs = {**quantization_args(InputRounding(8, "token")), **change}
    with pytest.raises(ValueError, match=r"layer\.3: inputs quantized as .* can't be emulated"):
        rounding_of("layer.3", arguments, None if scale is None else torch.tensor([scale]))
