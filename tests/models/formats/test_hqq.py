"""HQQ's layers are read as its library reads them, number by number."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats.hqq import PACKINGS, describe, read, read_published
from tests.models.formats.damage import refused


def text(words: str) -> Tensor:
    return torch.tensor(list(words.encode()), dtype=torch.uint8)


def layer(
    packing: str, rows: int, columns: int, group_size: int, axis: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a layer, and ``(q - zero) scale`` of each weight, each step in ``dtype``."""
    generator = torch.Generator().manual_seed(rows)
    groups = rows * columns // group_size
    bits, held = PACKINGS[packing]
    per = held.itemsize * 8 // bits
    matrix = (groups, group_size) if axis == 1 else (group_size, groups)
    codes = torch.randint(2**bits, matrix, generator=generator)
    by_group = (groups, 1) if axis == 1 else (1, groups)
    scale = (torch.rand(by_group, generator=generator) + 0.01).to(dtype)
    zero = (torch.rand(by_group, generator=generator) * 2**bits).to(dtype)
    step = -(-matrix[0] // per)
    packed = torch.zeros(step, matrix[1], dtype=torch.int64)
    for row, codes_of_row in enumerate(codes):
        packed[row % step] |= codes_of_row << bits * (per - 1 - row // step)
    expected = torch.empty(matrix, dtype=dtype)
    for row in range(matrix[0]):
        for column in range(matrix[1]):
            s, z = (each.expand(matrix)[row, column] for each in (scale, zero))
            expected[row, column] = (codes[row, column].to(dtype) - z) * s
    stored = {
        "W_q": packed.to(held),
        "scale": scale,
        "zero": zero,
        "shape": torch.tensor([rows, columns]),
        "group_size": torch.tensor(group_size, dtype=torch.int32),
        "axis": torch.tensor(axis, dtype=torch.int32),
        "packing": text(packing),
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "quant_scale": torch.tensor(0, dtype=torch.uint8),
        "compute_dtype": text(str(dtype)),
    }
    return stored, expected.float().view(rows, columns)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(8, 80, 16), (8, 16, 16), (80, 8, 8)])
def test_a_weight_is_its_code_less_the_zero_point_times_its_scale(
    packing: str, axis: int, rows: int, columns: int, group_size: int
) -> None:
    stored, expected = layer(packing, rows, columns, group_size, axis)
    found = read_published(stored, {}, "a")
    assert torch.equal(found.dense(), expected)
    assert torch.equal(read(found.stored(), None).dense(), expected)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found(x), x @ expected.T)


@pytest.mark.parametrize("nbits", [8, 6, 5, 4, 3, 2, 1.58, 1])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("as_float", [False, True])
def test_what_its_library_writes_is_read_bit_for_bit(
    nbits: float, axis: int, dtype: torch.dtype, as_float: bool
) -> None:
    hqq = pytest.importorskip("hqq.core.quantize")
    linear = torch.nn.Linear(80, 48, bias=False)
    config = hqq.BaseQuantizeConfig(nbits=nbits, group_size=16, axis=axis, view_as_float=as_float)
    theirs = hqq.HQQLinear(linear, config, compute_dtype=dtype, device="cpu", del_orig=False)
    found = read_published(theirs.state_dict(), {}, "a")
    assert torch.equal(found.dense(), theirs.dequantize().float())


def broken(**changes: Tensor) -> dict[str, Tensor]:
    return layer("4bit_u8", 8, 80, 16, 1)[0] | changes


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        (broken(quant_scale=torch.tensor(1)), "quantized themselves (quant_scale), which is not read"),
        (broken(packing=text("exec(1)")), "packing 'exec(1)' is not read; 8bit_u8"),
        (broken(shape=torch.tensor([8, 80, 1])), "shape is [8, 80, 1], not rows and columns"),
        (broken(shape=torch.tensor([2**40, 2**40])), "not rows and columns"),
        (broken(shape=torch.tensor([8, 81])), "groups of 16 along axis 1 do not divide a weight of 8 x 81"),
        (broken(group_size=torch.tensor(0)), "groups of 0"),
        (broken(axis=torch.tensor(2)), "along axis 2"),
        (broken(shape=torch.tensor([80, 80])), "scale has the shape [40, 1], not [400, 1]"),
        (broken(zero=torch.ones(40, 1)), "zero and scale are not of one type"),
        (broken(W_q=torch.zeros(20, 15, dtype=torch.uint8)), "W_q has the shape [20, 15], not [20, 16]"),
        (broken(zero_scale=torch.zeros(1)), "has the tensor zero_scale, which this format does not have"),
        (broken(scale=torch.full((40, 1), float("nan"))), "scale has numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: dict[str, Tensor], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(stored, {}, "a")
    assert "\n" not in str(problem.value)


def test_damaged_tensors_are_refused_or_give_a_weight() -> None:
    assert refused(lambda tensors: read_published(tensors, {}, "a"), broken(), 150) > 60


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, "HQQ, 4 bits, groups of 64"),
        ({"quant_config": {"weight_quant_params": {"nbits": 1.58}}}, "HQQ, 1.58 bits, a scale a row"),
        ({"quant_config": {"self_attn.q_proj": {"weight_quant_params": {}}}}, "HQQ, layers of several kinds"),
        ({"quant_config": [1]}, "HQQ"),
    ],
)
def test_the_format_in_words(config: dict[str, Any], words: str) -> None:
    assert describe(config) == words
