"""ModelOpt's FP8 and NVFP4, against the format's definition in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats import reader
from hemorrhage.models.formats.modelopt import ModelOptLinear, cache_scale, describe, read_published, rounds_cache
from tests.models.formats.damage import read_damaged

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]

FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}


def fp8(*shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(20, 77, generator=generator) * 100).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=generator) + 0.01
    return {"weight": weight, "weight_scale": scale, "input_scale": torch.tensor(0.03)}


def nvfp4() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randint(0, 256, (20, 40), generator=generator).to(torch.uint8),
        "weight_scale": (torch.rand(20, 5, generator=generator) * 400 + 1).to(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(0.000123),
        "input_scale": torch.tensor(0.0021),
    }


@pytest.mark.parametrize("shape", [(), (1,), (20,), (20, 1)])
def test_fp8_is_codes_times_the_scale_of_the_weight_or_of_the_row(shape: tuple[int, ...]) -> None:
    stored = fp8(*shape)
    layer = read_published(stored, FP8, "a")
    assert torch.equal(layer.dense(), stored["weight"].float() * stored["weight_scale"].reshape(-1, 1))
    assert layer.inputs == {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def test_nvfp4_is_codes_times_scales_times_the_scale_of_scales() -> None:
    stored = nvfp4()
    layer = read_published(stored, NVFP4, "a")
    for row in range(20):
        for column in range(80):
            octet = int(stored["weight"][row, column // 2])
            code = torch.tensor(E2M1[octet >> 4 if column % 2 else octet & 15])
            scale = stored["weight_scale"][row, column // 16].float() * stored["weight_scale_2"]
            assert layer.dense()[row, column] == code * scale
    assert layer.inputs == {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16,
        "dynamic": "local", "scale_dtype": "torch.float8_e4m3fn",
    }  # fmt: skip


def test_inputs_are_rounded_where_the_file_has_scales_for_it() -> None:
    without = {name: value for name, value in nvfp4().items() if name != "input_scale"}
    assert read_published(without, NVFP4, "a").inputs is None
    by_row = {name: value for name, value in fp8(20).items() if name != "input_scale"}
    inputs = read_published(by_row, {**FP8, "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "a").inputs
    assert inputs is not None
    assert (inputs["strategy"], inputs["dynamic"]) == ("token", True)


@pytest.mark.parametrize("stored", [fp8(), fp8(20), nvfp4()])
def test_a_checkpoint_of_ours_reads_back(stored: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = read_published(stored, {}, "a")
    dense = layer.dense()
    monkeypatch.setattr("hemorrhage.models.formats.dequantized.rows_at_once", lambda _columns: 7)
    assert torch.equal(layer.dense(), dense)
    _, layers = reader.read({f"a.{suffix}": value for suffix, value in layer.stored().items()}, None)
    assert isinstance(layers["a"], ModelOptLinear)
    assert torch.equal(layers["a"].dense(), dense)
    assert layers["a"].inputs == layer.inputs


def test_the_label_says_what_was_done() -> None:
    assert describe(FP8) == "ModelOpt FP8"
    assert describe(NVFP4) == "ModelOpt NVFP4; keys and values in FP8"
    assert describe({}) == "ModelOpt of unnamed algorithm"
    words = describe({**FP8, "kv_cache_scheme": {"num_bits": 8, "type": "float"}})
    assert words == "ModelOpt FP8; keys and values in 8-bit float"
    with pytest.raises(ValueError, match="ModelOpt's W4A8_AWQ is not read; FP8, "):
        describe({"quant_algo": "W4A8_AWQ"})


def test_a_cache_of_fp8_has_its_scales_with_the_projections() -> None:
    assert cache_scale(NVFP4, "a", "v") == "a.v_proj.v_scale"
    assert cache_scale({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "a", "k") == "a.k_proj.k_scale"
    assert cache_scale({"kv_cache_quant_algo": "NVFP4"}, "a", "k") is None
    assert [rounds_cache(each) for each in (FP8, NVFP4, {"kv_cache_quant_algo": "NVFP4"})] == [False, True, True]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weight": None}, "weight is missing"),
    ({"weight_scale": None}, "weight_scale is missing"),
    ({"pre_quant_scale": torch.ones(80)}, "unexpected tensor pre_quant_scale"),
    (
        {"weight_scale_2": None},
        r"torch\.uint8 and shape \[20, 40\] without weight_scale_2 can't be read",
    ),
    ({"weight_scale_2": torch.tensor(0.0)}, "weight_scale_2 is not one finite number above 0"),
    ({"weight_scale_2": torch.ones(2)}, "weight_scale_2 is not one finite number above 0"),
    ({"input_scale": torch.tensor(-1.0)}, "input_scale is not one finite number above 0"),
    ({"weight_scale": torch.ones(20, 5)}, r"weight_scale of type torch\.float32 and shape \[20, 5\] does not fit"),
    ({"weight_scale": torch.ones(20, 4).to(torch.float8_e4m3fn)}, r"\[20, 4\] does not fit a weight of \[20, 40\]"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_does_not_fit_is_one_clear_line(changes: dict[str, Any], message: str) -> None:
    tensors = {name: value for name, value in {**nvfp4(), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_published(tensors, NVFP4, "a")


@pytest.mark.parametrize("stored", [fp8(), fp8(20, 1), nvfp4()])
def test_damaged_tensors_end_in_one_line_or_in_numbers(stored: dict[str, Tensor]) -> None:
    layers, lines = read_damaged(lambda tensors: read_published(tensors, {}, "a"), stored, 60)
    assert not any(layer.dense().isnan().any() for layer in layers)
    assert len(lines) > 25
