"""bitsandbytes' layers are read as bitsandbytes reads them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats.bitsandbytes import STATES, describe, read, read_published
from hemorrhage.models.formats.codebook import NF4, CodebookLinear
from tests.models.formats.damage import refused
from tests.models.formats.test_codebook import stored as coded

NF4_STATE, FP4_STATE = STATES


def int8(rows: int = 5, columns: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8),
        "SCB": torch.rand(rows, generator=generator) + 0.1,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def nf4(**changes: Any) -> dict[str, Tensor]:
    """Tensors of a [3, 10] weight, with other values in the state."""
    tensors = dict(coded("nf4")[0])
    state = json.loads(bytes(tensors[NF4_STATE].tolist())) | changes
    return tensors | {NF4_STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


def test_a_byte_times_the_largest_of_its_row_by_127() -> None:
    tensors = int8()
    found = read_published(tensors, {"load_in_8bit": True}, "a")
    for row in range(5):
        for column in range(7):
            exact = float(tensors["weight"][row, column]) * float(tensors["SCB"][row]) / 127
            assert found.dense()[row, column].item() == pytest.approx(exact, rel=2e-7)
    assert torch.equal(read(found.stored(), None).dense(), found.dense())
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    assert isinstance(found, torch.nn.Module)
    torch.testing.assert_close(found(x), x @ found.dense().T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8_is_bit_for_bit_that_of_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(80, 172, generator=torch.Generator().manual_seed(2)).to(dtype)
    codes, largest, _ = functional.int8_vectorwise_quant(weight.half())
    found = read_published({"weight": codes, "SCB": largest}, {}, "a")
    assert torch.equal(found.dense(), functional.int8_vectorwise_dequant(codes, largest))


@pytest.mark.parametrize(("kind", "double"), [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(80, 172), (33, 7), (5, 64)])
def test_4_bits_are_bit_for_bit_those_of_bitsandbytes(
    kind: str, double: bool, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=double)
    tensors = {"weight": codes} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    found = read_published(tensors, {}, "a")
    assert isinstance(found, CodebookLinear)
    assert torch.equal(found.dense(), functional.dequantize_4bit(codes, state).float())


def test_4_bits_are_the_tables_entries() -> None:
    tensors, codes, absmax = coded("nf4")
    found = read_published(tensors, {}, "a")
    expected = [NF4[code] * float(absmax[place // 8]) for place, code in enumerate(codes)]
    torch.testing.assert_close(found.dense(), torch.tensor(expected).view(3, 10))


def test_bytes_that_are_called_numbers_of_another_type_are_read_as_bytes() -> None:
    tensors = nf4()
    codes = torch.cat([tensors["weight"], torch.zeros(1, 1, dtype=torch.uint8)]).view(-1, 2).view(torch.bfloat16)
    shape = {"shape": [4, 8]}
    expected = read_published(nf4(**shape) | {"weight": codes.view(torch.uint8).view(-1, 1)}, {}, "a").dense()
    assert torch.equal(read_published(nf4(**shape) | {"weight": codes}, {}, "a").dense(), expected)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        (int8() | {"SCB": torch.ones(4)}, "SCB has the shape [4], not [5]"),
        (int8() | {"SCB": torch.full((5,), float("nan"))}, "SCB has numbers that are not finite"),
        (int8() | {"weight_format": torch.tensor(3, dtype=torch.uint8)}, "in the order of another kernel"),
        (int8() | {"weight": torch.zeros(5, 7)}, "weight is of type float32, not int8"),
        ({"weight": torch.zeros(5, 7)}, "has 0 of weight.quant_state.bitsandbytes__nf4 and"),
        (nf4() | {FP4_STATE: torch.zeros(1, dtype=torch.uint8)}, "has 2 of"),
        (nf4() | {NF4_STATE: torch.tensor([1, 2], dtype=torch.uint8)}, "its quant_state is no JSON object"),
        (nf4() | {NF4_STATE: torch.tensor(list(b"[" * 9999), dtype=torch.uint8)}, "no JSON object"),
        (nf4(shape=[3, -10]), "has the shape [3, -10], not rows and columns"),
        (nf4(shape=[2**40, 2**40]), "weight has the shape [15, 1], not"),
        (nf4(blocksize=0), "has blocksize 0, not a whole number from 1 on"),
        (nf4(dtype="qint8"), "has the dtype 'qint8', which is none of float32"),
        (nf4(nested_blocksize=2), "weight.absmax is of type float32, not uint8"),
        (nf4() | {"weight.quant_map": torch.ones(15)}, "weight.quant_map has the shape [15], not [16]"),
        (nf4() | {"weight.absmax": torch.ones(3)}, "weight.absmax has the shape [3], not [4]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, Tensor], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(tensors, {}, "a")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("whole", [int8(), nf4()])
def test_damaged_tensors_are_refused_or_give_a_weight(whole: dict[str, Tensor]) -> None:
    assert refused(lambda tensors: read_published(tensors, {}, "a"), whole, 120) > 50


def test_the_format_in_words() -> None:
    assert describe({"load_in_8bit": True}) == "bitsandbytes LLM.int8, 8 bits; inputs are not rounded"
    double = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert describe(double) == "bitsandbytes NF4, 4 bits, double"
    assert describe({"load_in_4bit": True}) == "bitsandbytes FP4, 4 bits"
