"""torchao's layers are read as torchao reads them, number by number."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats.torchao import describe, read, read_published
from tests.models.formats.damage import refused


def int8(
    rows: int, columns: int, blocks: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a layer of bytes with ``blocks`` of scales, and ``(q - z) s`` of each weight in ``dtype``."""
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    zero = torch.randint(-128, 128, blocks, generator=generator, dtype=torch.int8)
    scale = (torch.rand(blocks, generator=generator) + 0.01).to(dtype)
    expected = torch.empty(rows, columns, dtype=dtype)
    for row in range(rows):
        for column in range(columns):
            block = (row * blocks[0] // rows, column * blocks[1] // columns)
            expected[row, column] = (int(q[row, column]) - int(zero[block])) * scale[block]
    stored = {"_weight_qdata": q, "_weight_scale": scale, "_weight_zero_point": zero}
    return stored, expected.float()


def int4(rows: int, columns: int, groups: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of an Int4Tensor by the functions that torchao takes for it: int4_row_quantize_zp and pack_int4."""
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)
    low, high = q[:, ::2], q[:, 1::2]
    scale = (torch.rand(groups, rows, generator=generator) + 0.01).bfloat16()
    zero = torch.randn(groups, rows, generator=generator).bfloat16()
    expected = torch.empty(rows, columns, dtype=torch.bfloat16)
    for row in range(rows):
        for column in range(columns):
            group = column * groups // columns
            expected[row, column] = q[row, column] * scale[group, row] + zero[group, row]
    packed = torch.bitwise_or(low & 0xF, torch.bitwise_left_shift(high, 4))
    return {"_weight_qdata": packed, "_weight_scale": scale, "_weight_zero_point": zero}, expected.float()


@pytest.mark.parametrize("blocks", [(5, 1), (1, 1), (5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_less_the_zero_point_times_the_scale(blocks: tuple[int, int], dtype: torch.dtype) -> None:
    stored, expected = int8(5, 80, blocks, dtype)
    found = read_published(stored, {}, "a")
    assert torch.equal(found.dense(), expected)
    assert torch.equal(read(found.stored(), None).dense(), expected)
    x = torch.randn(3, 80, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found(x), x @ expected.T)


@pytest.mark.parametrize("groups", [1, 5])
def test_two_codes_a_byte(groups: int) -> None:
    stored, expected = int4(6, 80, groups)
    found = read_published(stored, {}, "a")
    assert (found.out_features, found.in_features) == (6, 80)
    assert torch.equal(found.dense(), expected)
    assert torch.equal(read(found.stored(), None).dense(), expected)
    unsigned = stored | {"_weight_qdata": stored["_weight_qdata"].view(torch.uint8)}
    assert torch.equal(read_published(unsigned, {}, "a").dense(), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("blocks", [(6, 1), (1, 1), (2, 5)])
def test_float8_times_the_scale(dtype: torch.dtype, blocks: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(6, 80, generator=generator).to(dtype)
    scale = torch.rand(blocks, generator=generator)
    found = read_published({"_weight_qdata": q, "_weight_scale": scale}, {}, "a").dense()
    for row in range(6):
        for column in range(80):
            factor = scale[row * blocks[0] // 6, column * blocks[1] // 80]
            assert found[row, column] == q[row, column].float() * factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["Int8WeightOnly", "Int8DynamicActivationInt8Weight", "Float8WeightOnly"])
def test_what_torchao_flattens_is_read_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = getattr(quantization, f"{kind}Config")(version=2)
    stored, weight = flattened(quantization, config, dtype)
    found = read_published(stored, {}, "a").dense()
    assert torch.equal(found, weight.dequantize(output_dtype=torch.float32))
    assert torch.equal(found.to(dtype), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_a_byte_each_are_read_bit_for_bit(bits: int, dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=quantization.PerGroup(16), version=2
    )
    stored, weight = flattened(quantization, config, dtype)
    assert torch.equal(read_published(stored, {}, "a").dense(), weight.dequantize().float())


def flattened(quantization: Any, config: Any, dtype: torch.dtype) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a quantized layer as transformers saves them, and its weight in torchao's class."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(80, 48, bias=False)).to(dtype)
    quantization.quantize_(model, config)
    tensors, _ = flatten_tensor_state_dict(model.state_dict())
    return {name.removeprefix("0."): value for name, value in tensors.items()}, model[0].weight


def broken(**changes: Tensor) -> dict[str, Tensor]:
    return int8(6, 80, (6, 5))[0] | {f"_weight_{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        (broken(act_pre_scale=torch.ones(80)), "has the tensor _weight_act_pre_scale, which this format does not have"),
        (broken(scale=torch.ones(4, 5)), "_weight_zero_point has the shape [6, 5], not [4, 5]"),
        (broken(scale=torch.ones(6, 7), zero_point=torch.zeros(6, 7)), "do not divide _weight_qdata [6, 80]"),
        (broken(scale=torch.full((6, 5), float("inf"))), "_weight_scale has numbers that are not finite"),
        (broken(qdata=torch.zeros(6, 80, dtype=torch.uint8)), "is not one of torchao's tensors that are read"),
        (broken(qdata=torch.zeros(6, 80).to(torch.float8_e4m3fn)), "is not one of torchao's tensors that are read"),
        (int4(6, 80, 5)[0] | {"_weight_scale": torch.ones(5, 6)}, "scales and zero points of one type"),
        (int4(6, 80, 5)[0] | {"_weight_scale": torch.ones(4, 6)}, "_weight_scale has the shape [4, 6], not [5, 6]"),
        (int4(6, 84, 7)[0] | {"_weight_qdata": torch.zeros(6, 41, dtype=torch.int8)}, "do not divide"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: dict[str, Tensor], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(stored, {}, "a")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("whole", [broken(), int4(6, 80, 5)[0]])
def test_damaged_tensors_are_refused_or_give_a_weight(whole: dict[str, Tensor]) -> None:
    assert refused(lambda tensors: read_published(tensors, {}, "a"), whole, 90) > 40


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}, "torchao, Int8WeightOnlyConfig"),
        ({"quant_type": "int8_weight_only"}, "torchao, int8_weight_only"),
        ({}, "torchao, null"),
    ],
)
def test_the_format_in_words(config: dict[str, Any], words: str) -> None:
    assert describe(config) == words
