"""Number formats against compressed-tensors' own observers' arithmetic and compressors, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torch import Tensor

from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers import number_formats
from hemorrhage.compress.solvers.number_formats import BLOCK, FLOATS, INPUTS, fixed_input, round_to_nearest

PRESETS = {
    "fp8": "FP8_DYNAMIC",
    "fp8_tensor": "FP8",
    "fp8_block": "FP8_BLOCK",
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
}
"""Format -> compressed-tensors' preset."""


def weights(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Weights of all sizes, with groups of zeros, of one sign, and of very small numbers."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    weight[0, :32] = 0
    weight[1, :32] = weight[1, :32].abs()
    weight[2, :32] *= 1e-6
    weight[3] *= 40
    # Without negative zeros, whose sign the library drops.
    return weight.to(dtype) + 0


def theirs(weight: Tensor, preset: str, total: Tensor | None) -> dict[str, Tensor]:
    """What compressed-tensors stores of ``weight``, with scales of the minmax observer's arithmetic."""
    scheme = preset_name_to_scheme(preset, ["Linear"])
    arguments = scheme.weights
    assert arguments is not None
    match arguments.model_dump(mode="json")["strategy"]:
        case "tensor":
            groups = weight.reshape(1, -1)
        case "channel":
            groups = weight[:, None]
        case "block":
            groups = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2).flatten(2)
        case _:
            assert arguments.group_size is not None
            groups = weight.unflatten(1, (-1, arguments.group_size))
    # In float32 where the scale is of another type than the weights: the library would round max / 6 to theirs before,
    # and in float16 lose powers of two below 2^-14.
    low, high = (groups if preset.startswith("FP8") else groups.float()).aminmax(dim=-1)
    scale, _ = calculate_qparams(low, high, arguments, total)
    state = {"weight": weight.float(), "weight_scale": scale.float()}
    if total is not None:
        state["weight_global_scale"] = total
    name = {"FP8": "float-quantized", "MXFP8": "mxfp8-quantized"}.get(preset) or {
        "NVFP4": "nvfp4-pack-quantized",
        "MXFP4": "mxfp4-pack-quantized",
    }.get(preset, "float-quantized")
    compressed: dict[str, Tensor] = BaseCompressor.get_value_from_registry(name).compress(state, scheme)
    return compressed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", sorted(PRESETS))
def test_rounding_to_nearest_is_bit_for_bit_that_of_compressed_tensors(form: str, dtype: torch.dtype) -> None:
    weight = weights(256, 384, dtype)
    (ours,) = round_to_nearest([weight], FLOATS[form], dtype)
    total = generate_gparam(weight.amin().float(), weight.amax().float()) if form == "nvfp4" else None
    expected = theirs(weight, PRESETS[form], total)
    stored = ours.tensors()
    codes = "weight_packed" if "weight_packed" in stored else "weight"
    assert torch.equal(stored[codes].view(torch.uint8), expected[codes].view(torch.uint8))
    scale = stored["weight_scale"]
    assert torch.equal(scale.float().flatten(), expected["weight_scale"].float().flatten())
    if total is not None:
        assert torch.equal(stored["weight_global_scale"], total)


@pytest.mark.parametrize("form", sorted(PRESETS))
def test_the_configuration_is_that_of_the_preset(form: str) -> None:
    preset: QuantizationScheme = preset_name_to_scheme(PRESETS[form], ["Linear"])
    assert preset.weights is not None
    expected = preset.weights.model_dump()
    for key, value in FLOATS[form].weights.items():
        assert expected[key] == value, key


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("int8_token", "W8A8"),
        ("int4_token", "W4A4"),
        ("fp8_token", "FP8_DYNAMIC"),
        ("fp8_static", "FP8"),
        ("fp8_group", "FP8_BLOCK"),
        ("nvfp4", "NVFP4"),
        ("mxfp4", "MXFP4"),
        ("mxfp8", "MXFP8"),
    ],
)
def test_the_inputs_are_those_of_the_preset(name: str, preset: str) -> None:
    arguments = preset_name_to_scheme(preset, ["Linear"]).input_activations
    assert arguments is not None
    expected = arguments.model_dump()
    for key, value in INPUTS[name].arguments.items():
        given: Any = expected[key]
        assert (str(given) if key == "scale_dtype" else getattr(given, "value", given)) == value, key


def test_every_number_of_a_format_stays_and_ties_go_to_the_even_one() -> None:
    # The tables of the OCP specification, in numbers.
    halves = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0, 7.0: 6.0}
    for number in (halves, -halves):
        assert torch.equal(number_formats.nearest_(number.clone(), FLOATS["nvfp4"]), number)
    rounded = number_formats.nearest_(torch.tensor([*ties]), FLOATS["mxfp4"])
    assert rounded.tolist() == [*ties.values()]
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    finite = every[every.isfinite()]
    assert torch.equal(number_formats.nearest_(finite.clone(), FLOATS["fp8"]), finite)
    assert finite.abs().max() == 448


def test_layers_of_one_input_share_the_scale_of_a_layer() -> None:
    first, second = weights(64, 64, torch.bfloat16), 3 * weights(32, 64, torch.bfloat16)
    for form in ("nvfp4", "fp8_tensor"):
        ours = round_to_nearest([first, second], FLOATS[form], torch.bfloat16)
        shared = [each.total if form == "nvfp4" else each.scale for each in ours]
        assert shared[0] is not None
        assert shared[1] is not None
        assert torch.equal(shared[0], shared[1])


@pytest.mark.parametrize("form", sorted(PRESETS))
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_with_a_diagonal_moment_is_rounding_to_nearest(form: str, act_order: bool) -> None:
    # Nothing to compensate: every column is rounded as it was.
    pair = [weights(150, 192, torch.bfloat16), weights(70, 192, torch.bfloat16)]
    settings = gptq.Settings.model_validate({"format": form, "act_order": act_order})
    width = number_formats.columns_of_scale("layer", 192, settings)
    swept = gptq.quantize_shared(pair, torch.diag(torch.rand(192) + 0.5), width, settings, torch.bfloat16)
    nearest = round_to_nearest(pair, FLOATS[form], torch.bfloat16)
    for ours, expected in zip(swept, nearest, strict=True):
        assert isinstance(ours, number_formats.QuantizedFloats)
        assert torch.equal(ours.dense(), expected.dense())
        for name, value in expected.tensors().items():
            if name != "weight_packed":
                assert torch.equal(ours.tensors()[name].float(), value.float()), name


@pytest.mark.parametrize("form", sorted(PRESETS))
def test_gptq_errs_less_than_rounding_in_what_the_layer_computes(form: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 192, generator=generator) @ torch.randn(192, 192, generator=generator)
    H, weight = x.T @ x / len(x), weights(96, 192, torch.bfloat16)
    settings = gptq.Settings.model_validate({"format": form})
    width = number_formats.columns_of_scale("layer", 192, settings)
    (swept,) = gptq.quantize_shared([weight], H, width, settings, torch.bfloat16)
    (nearest,) = round_to_nearest([weight], FLOATS[form], torch.bfloat16)

    def error(dense: Tensor) -> float:
        change = dense - weight.float()
        return float((change @ H * change).sum())

    assert error(swept.dense()) < 0.8 * error(nearest.dense())


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def literal_squares(block: list[float], step: float) -> float:
    """The sum of squared errors of a block, each number the nearest of the table."""
    table = [*E2M1, *(-value for value in E2M1)]
    return sum((min(table, key=lambda value: abs(value * step - weight)) * step - weight) ** 2 for weight in block)


def e4m3(value: float) -> float:
    """The nearest number of E4M3, or the least above zero where that is zero."""
    return float(torch.tensor(min(value, 448.0)).to(torch.float8_e4m3fn).float()) or 0.125


def test_four_over_six_is_its_paper() -> None:
    weight = weights(24, 64, torch.bfloat16)
    (ours,) = round_to_nearest([weight], FLOATS["nvfp4"], torch.bfloat16, "four_over_six")
    total = 256 * 6 / weight.float().abs().max().item()
    assert ours.total is not None
    assert ours.total.item() == pytest.approx(total)
    chosen: set[float] = set()
    for row, scales in zip(weight.float().tolist(), ours.scale.float().tolist(), strict=True):
        for start, scale in zip(range(0, 64, 16), scales, strict=True):
            block = row[start : start + 16]
            largest = max(map(abs, block))
            six, four = e4m3(largest / 6 * total), e4m3(largest / 4 * total)
            is_four = literal_squares(block, four / total) < literal_squares(block, six / total)
            assert scale == (four if is_four else six)
            chosen.add(4 if is_four else 6)
    assert chosen == {4, 6}


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4"])
def test_searched_scales_are_the_best_of_all_that_the_format_has(form: str) -> None:
    weight = weights(24, 64, torch.bfloat16)
    number = FLOATS[form]
    (ours,) = round_to_nearest([weight], number, torch.bfloat16, "mse")
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = 2.0 ** torch.arange(-60.0, 10.0) if ours.total is None else every / ours.total
    width = number.width or 64
    groups = weight.float().unflatten(1, (-1, width))
    rounded = (groups / every[:, None, None, None]).flatten()
    nearest = torch.tensor(E2M1)[(rounded.abs()[:, None] - torch.tensor(E2M1)).abs().argmin(1)] * rounded.sign()
    errors = (nearest.view(-1, *groups.shape) * every[:, None, None, None] - groups).square().sum(-1)
    found = (ours.dense().unflatten(1, (-1, width)) - groups).square().sum(-1)
    assert torch.all(found <= errors.amin(0) * 1.0001 + 1e-20)
    (plain,) = round_to_nearest([weight], number, torch.bfloat16)
    before = (plain.dense().unflatten(1, (-1, width)) - groups).square().sum(-1)
    # The power of two above the largest weight is nearly always the best: above that, weights are lost.
    assert (found / before)[before > 0].mean() < {"nvfp4": 0.97, "mxfp4": 0.999}[form]


@pytest.mark.parametrize(("form", "block_scales"), [("nvfp4", "four_over_six"), ("nvfp4", "mse"), ("mxfp4", "mse")])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_chooses_scales_by_what_an_error_costs(form: str, block_scales: Any, act_order: bool) -> None:
    pair = [weights(150, 192, torch.bfloat16), weights(70, 192, torch.bfloat16)]
    settings = gptq.Settings.model_validate({"format": form, "act_order": act_order, "block_scales": block_scales})
    width = number_formats.columns_of_scale("layer", 192, settings)
    moment = torch.rand(192, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-3
    swept = gptq.quantize_shared(pair, torch.diag(moment), width, settings, torch.bfloat16)
    nearest = round_to_nearest(pair, FLOATS[form], torch.bfloat16, block_scales)

    def cost(dense: Tensor, weight: Tensor) -> float:
        return float(((dense - weight).square() * moment).sum())

    for ours, plain, weight in zip(swept, nearest, pair, strict=True):
        assert cost(ours.dense(), weight.float()) < cost(plain.dense(), weight.float())
    # Where all columns cost the same, it is rounding to nearest.
    even = gptq.quantize_shared(pair, torch.eye(192), width, settings, torch.bfloat16)
    for ours, plain in zip(even, nearest, strict=True):
        assert torch.equal(ours.dense(), plain.dense())


def test_fixed_ranges_are_what_the_library_computes() -> None:
    largest = torch.tensor([0.5, 7.25, 3.0])
    assert torch.equal(fixed_input("nvfp4", largest, torch.bfloat16)["input_global_scale"],
                       generate_gparam(torch.tensor(0.0), torch.tensor(7.25)))  # fmt: skip
    for name, preset in (("fp8_static", "FP8"), ("int8_static", "INT8")):
        arguments = preset_name_to_scheme(preset, ["Linear"]).input_activations
        assert arguments is not None
        scale, _ = calculate_qparams(torch.tensor([-7.25]), torch.tensor([7.25]), arguments)
        assert torch.equal(fixed_input(name, largest, torch.bfloat16)["input_scale"], scale.bfloat16())
    assert fixed_input("fp8_token", largest, torch.bfloat16) == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"format": "nvfp4", "bits": 8}, "bits 8 does not go with nvfp4, which has bits 4"),
        ({"format": "mxfp4", "group_size": 16}, "group_size 16 does not go with mxfp4"),
        ({"bits": 8, "symmetric": False, "inputs": "int8_token"}, "symmetric False does not go with rounded inputs"),
        ({"format": "fp16"}, "format must be int, fp8, .*got 'fp16'"),
        ({"format": "mxfp4", "block_scales": "four_over_six"}, "block_scales four_over_six is for format nvfp4"),
        ({"bits": 4, "block_scales": "mse"}, "block_scales mse is for format nvfp4 and mxfp4"),
    ],
)
def test_what_does_not_go_together_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rtn.Settings.model_validate(wrong)


def test_a_format_names_its_groups_and_inputs_are_named() -> None:
    settings = rtn.Settings.model_validate({"format": "nvfp4", "inputs": "nvfp4"})
    assert settings.curve == "NVFP4, NVFP4 inputs"
    assert settings.statistics == ("activations",)
    assert rtn.Settings.model_validate({"format": "fp8", "inputs": "fp8_token"}).statistics == ()
    eight = rtn.Settings.model_validate({"bits": 8, "group_size": "channel", "inputs": "int8_token"})
    assert (eight.symmetric, eight.label) == (True, "8 bit, per channel, symmetric, INT8 inputs per token")
