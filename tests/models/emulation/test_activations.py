"""Inputs that are rounded as a layer computes, against grids written out and compressed-tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp, generate_gparam
from torch import nn

from hemorrhage.models.emulation.activations import (
    STRATEGIES,
    AsymmetricRounding,
    FloatRounding,
    InputRounding,
    RoundingHook,
    exact,
    is_exact,
    quantization_args,
    rounding_of,
    scale_of,
)
from hemorrhage.models.formats import config

PRESETS = {name: preset_name_to_scheme(name, ["Linear"]) for name in ("MXFP4", "MXFP8", "NVFP4")}

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
    stored = {"input_scale": torch.tensor([0.25])} if over == "static" else {}
    assert rounding_of("layer", quantization_args(rounding), stored) == rounding


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({"strategy": "group"}, None),
        ({"type": "float", "symmetric": False}, None),
        ({"type": "float", "num_bits": 4}, None),
        ({}, 0.5),
        ({"dynamic": False, "strategy": "tensor"}, None),
    ],
)
def test_what_this_bench_never_writes_is_refused(change: config.QuantizationArgs, scale: float | None) -> None:
    arguments: config.QuantizationArgs = {**quantization_args(InputRounding(8, "token")), **change}
    with pytest.raises(ValueError, match=r"layer\.3: inputs quantized as .* can't be emulated"):
        rounding_of("layer.3", arguments, {} if scale is None else {"input_scale": torch.tensor([scale])})


GRIDS: dict[str, tuple[dict[str, Any], RoundingHook]] = {
    "int8 per token, asymmetric": (
        {"num_bits": 8, "strategy": "token", "symmetric": False, "dynamic": True},
        AsymmetricRounding(8, "token"),
    ),
    "int4 per tensor, asymmetric": (
        {"num_bits": 4, "strategy": "tensor", "symmetric": False, "dynamic": True},
        AsymmetricRounding(4, "tensor"),
    ),
    "fp8 per token": (
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        FloatRounding(8, "token"),
    ),
    "fp8 per tensor": (
        {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True},
        FloatRounding(8, "tensor"),
    ),
    "fp8 in groups": (
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 8, "dynamic": True},
        FloatRounding(8, "group", 8),
    ),
    "MXFP4": (dict(PRESETS["MXFP4"].input_activations or ()), FloatRounding(4, "group", 32, is_power=True)),
    "MXFP8": (dict(PRESETS["MXFP8"].input_activations or ()), FloatRounding(8, "group", 32, is_power=True)),
}
"""How inputs are rounded: the words of compressed-tensors, and the hook."""

WIDE = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 3, 64)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_others_are_bit_for_bit_those_of_compressed_tensors(name: str) -> None:
    words, rounding = GRIDS[name]
    arguments = QuantizationArgs(**words)
    x = WIDE.clone()
    x[0, 1], x[1, 2, :32] = 0, 0
    scale, zero = compute_dynamic_scales_and_zp(x, arguments, nn.Identity())
    assert torch.equal(rounding.round(x), fake_quantize(x, scale, zero, arguments))
    described: config.QuantizationArgs = json.loads(arguments.model_dump_json())
    assert rounding_of("layer", described, {}) == rounding


def test_nvfp4_is_bit_for_bit_that_of_compressed_tensors_with_either_kind_of_global_scale() -> None:
    arguments = PRESETS["NVFP4"].input_activations
    assert arguments is not None
    total = generate_gparam(WIDE.min(), WIDE.max())
    scale, zero = compute_dynamic_scales_and_zp(WIDE, arguments, nn.Identity(), global_scale=total)
    described: config.QuantizationArgs = json.loads(arguments.model_dump_json())
    rounding = rounding_of("layer", described, {"input_global_scale": total})
    assert torch.equal(rounding.round(WIDE), fake_quantize(WIDE, scale, zero, arguments, global_scale=total))
    assert rounding_of("layer", described, {"input_scale": 1 / torch.tensor([64.0])}) == FloatRounding(
        4, "group", 16, total=64.0, is_e4m3=True
    )
    with pytest.raises(ValueError, match=r"layer: input_global_scale is missing"):
        rounding_of("layer", described, {})


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_fixed_scales_are_bit_for_bit_those_of_compressed_tensors(is_symmetric: bool) -> None:
    kind = "float" if is_symmetric else "int"
    arguments = QuantizationArgs(num_bits=8, type=kind, strategy="tensor", symmetric=is_symmetric)
    stored = {"input_scale": torch.tensor([0.37]), "input_zero_point": torch.tensor([0 if is_symmetric else -7])}
    rounding = rounding_of("layer", json.loads(arguments.model_dump_json()), stored)
    theirs = fake_quantize(WIDE, stored["input_scale"], stored["input_zero_point"], arguments)
    assert torch.equal(rounding.round(WIDE), theirs)


def test_a_smaller_last_group_has_a_scale_of_its_own() -> None:
    x = WIDE[..., :20]
    found = FloatRounding(8, "group", 16).round(x)
    assert torch.equal(found[..., 16:], FloatRounding(8, "token").round(x[..., 16:]))
    assert found.shape == x.shape
    layer = nn.Linear(20, 2)
    layer.register_forward_pre_hook(FloatRounding(4, "group", 16, is_e4m3=True))
    assert layer(x[:, :0]).shape == (2, 0, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    arguments: config.QuantizationArgs = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    with pytest.raises(ValueError, match="layer: input_scale is not one finite number"):
        rounding_of("layer", {**arguments, "symmetric": True}, {"input_scale": torch.tensor(value)})
