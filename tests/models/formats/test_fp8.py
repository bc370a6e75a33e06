"""FP8 in blocks, as transformers dequantizes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from hemorrhage.models.formats import fp8, reader
from hemorrhage.models.formats.fp8 import BlockFloatLinear, describe, read_published
from tests.models.formats.damage import read_damaged

QUANTIZATION = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}


def stored_of(rows: int, columns: int, scale_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator) * 100
    scale = torch.rand(-(-rows // 16), -(-columns // 32), generator=generator) + 0.01
    if scale_dtype == torch.uint8:
        scale = scale * 40 + 100
    return {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": scale.to(scale_dtype)}


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu])
def test_the_dense_weight_is_what_transformers_dequantizes(scale_dtype: torch.dtype) -> None:
    stored = stored_of(48, 96, scale_dtype)
    convert: Any = Fp8Dequantize(SimpleNamespace())
    theirs = convert._dequantize_one(stored["weight"], stored["weight_scale_inv"], torch.float32)
    layer = read_published(stored, QUANTIZATION, "a")
    assert torch.equal(layer.dense(), theirs)
    assert layer.inputs == {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": True,
    }  # fmt: skip


def test_blocks_at_the_end_may_be_smaller_and_a_checkpoint_of_ours_reads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = stored_of(41, 70)
    layer = read_published(stored, QUANTIZATION, "a")
    values, scale = stored["weight"].float(), stored["weight_scale_inv"]
    expected = torch.stack([
        torch.stack([values[row, column] * scale[row // 16, column // 32] for column in range(70)]) for row in range(41)
    ])  # fmt: skip
    assert torch.equal(layer.dense(), expected)
    monkeypatch.setattr("hemorrhage.models.formats.dequantized.rows_at_once", lambda _columns: 7)
    assert torch.equal(layer.dense(), expected)
    _, layers = reader.read({f"a.{suffix}": value for suffix, value in layer.stored().items()}, None)
    assert isinstance(layers["a"], BlockFloatLinear)
    assert torch.equal(layers["a"].dense(), expected)
    assert layers["a"].inputs == layer.inputs


def test_inputs_of_a_fixed_scale_are_rounded_with_it() -> None:
    stored = {**stored_of(16, 32), "activation_scale": torch.tensor(0.5)}
    layer = read_published(stored, {**QUANTIZATION, "activation_scheme": "static"}, "a")
    assert layer.stored()["input_scale"] == 0.5
    assert layer.inputs == {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    # DeepSeek's later checkpoints have one that a dynamic scheme does not use.
    assert "input_scale" not in read_published(stored, QUANTIZATION, "a").stored()


@pytest.mark.parametrize(
    ("name", "shape"), [("weight_scale_inv", ()), ("weight_scale", (1,)), ("weight_scale", (1, 1))]
)
def test_one_scale_may_be_for_the_whole_weight(name: str, shape: tuple[int, ...]) -> None:
    weight = stored_of(41, 70)["weight"]
    stored = {"weight": weight, name: torch.full(shape, 0.37), "input_scale": torch.tensor(0.5)}
    layer = read_published(stored, {"activation_scheme": "static", "weight_block_size": None}, "a")
    assert torch.equal(layer.dense(), weight.float() * torch.tensor(0.37))
    assert layer.inputs["strategy"] == "tensor"
    # A scale for each token is one for a group of all columns.
    dynamic = read_published(stored, {"activation_scheme": "dynamic"}, "a").inputs
    assert (dynamic["strategy"], dynamic["group_size"]) == ("group", 70)


def test_the_label_says_what_was_done() -> None:
    assert describe({"weight_block_size": None}) == "FP8, inputs FP8 per token"
    assert describe({"activation_scheme": "static"}) == "FP8, inputs FP8 per tensor, static"
    static = describe({**QUANTIZATION, "activation_scheme": "static"})
    assert static == "fine-grained FP8, blocks of 16x32, inputs FP8 per tensor, static"


@pytest.mark.parametrize(
    ("changes", "quantization", "message"),
    [
        ({"weight_scale_inv": torch.ones(3, 2)}, {}, r"the shape \[3, 2\], and \[3, 3\] fits the weight"),
        ({"weight_scale_inv": torch.full((3, 3), torch.inf)}, {}, "weight_scale_inv is not finite"),
        ({"weight_scale_inv": torch.ones(3, 3, dtype=torch.int32)}, {}, "weight_scale_inv of type torch.int32"),
        ({"weight": torch.ones(48, 96)}, {}, "weight of type torch.float32 .* can't be read as FP8"),
        ({"strange": torch.ones(1)}, {}, "unexpected tensor strange"),
        ({}, {"weight_block_size": [0, 128]}, "weight_block_size.0: Input should be greater than 0"),
        ({}, {"weight_block_size": [128]}, "quantization_config's weight_block_size.1: Field required"),
        ({}, {"activation_scheme": "late"}, "activation_scheme: Input should be 'dynamic' or 'static'"),
        ({"weight_scale": torch.ones(3, 3)}, {}, "has both weight_scale and weight_scale_inv"),
        ({}, {"activation_scheme": "static"}, "input_scale is missing, and activation_scheme is static"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    changes: dict[str, Tensor], quantization: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_published({**stored_of(48, 96), **changes}, {**QUANTIZATION, **quantization}, "a")


def test_damaged_tensors_end_in_one_line_or_in_numbers() -> None:
    layers, lines = read_damaged(lambda tensors: read_published(tensors, QUANTIZATION, "a"), stored_of(41, 70), 60)
    assert not any(layer.dense().isnan().any() for layer in layers)
    assert len(lines) > 20
    with pytest.raises(ValueError, match="weight_block_size is missing"):
        fp8.read(stored_of(41, 70), None)
