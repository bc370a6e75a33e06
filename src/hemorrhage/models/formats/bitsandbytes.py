"""bitsandbytes checkpoints: LLM.int8, and the 4-bit codebooks of hemorrhage.models.formats.codebook.

LLM.int8 (arXiv 2208.07339): ``weight`` int8 [rows, columns]; ``SCB`` float32 [rows], the largest absolute weight of a
row; ``weight_format`` uint8, 0 for rows after rows. ``W = weight · SCB / 127``. Engines also round the inputs to 8 bits
when they compute, but for columns with an input of ``llm_int8_threshold`` or more; here inputs stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.codebook import STATE, TABLES, CodebookLinear
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.pieces import Pieces, fit
from hemorrhage.models.formats.storage import FormattedLinear

STATES = tuple(f"{STATE}{kind}" for kind in TABLES)

MARKS = ("SCB", *STATES)

RECIPROCAL = 7.874015718698502e-3
"""What bitsandbytes multiplies with instead of dividing by 127."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types that a weight may have had before it was coded: what a reader rounds to."""


class LlmInt8Linear(DequantizedLinear):
    """A linear layer of signed bytes with the largest weight of each row, dequantized whenever it computes."""

    storage_format = "llm_int8"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring."""
        rows, columns = stored["weight"].shape
        super().__init__((rows, columns), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], as bitsandbytes' int8_vectorwise_dequant."""
        stored = self.stored()
        return self.by_rows(lambda rows: stored["weight"][rows] * stored["SCB"][rows].view(-1, 1) * RECIPROCAL)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> LlmInt8Linear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return LlmInt8Linear(stored)


def read_published(stored: Mapping[str, Tensor], _quantization: Mapping[str, Any], _layer: str) -> FormattedLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    if "SCB" in stored:
        return _int8(stored)
    keys = [key for key in STATES if key in stored]
    if len(keys) != 1:
        raise ValueError(f"has {len(keys)} of {' and '.join(STATES)}, not one")
    return _codebook(stored, keys[0])


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    if quantization.get("load_in_8bit"):
        return "bitsandbytes LLM.int8, 8 bits; inputs are not rounded"
    kind = str(quantization.get("bnb_4bit_quant_type", "fp4")).upper()
    double = ", double" if quantization.get("bnb_4bit_use_double_quant") is True else ""
    return f"bitsandbytes {kind}, 4 bits{double}"


def _int8(stored: Mapping[str, Tensor]) -> LlmInt8Linear:
    pieces = Pieces(stored, ("weight", "SCB", "weight_format"))
    weight = pieces.tensor("weight", [torch.int8], 2)
    largest = pieces.scales("SCB", 1)
    fit("SCB", largest, len(weight))
    if "weight_format" in pieces and pieces.number("weight_format") != 0:
        raise ValueError("weight_format is not 0: the weight is in the order of another kernel, which is not read")
    return LlmInt8Linear({"weight": weight, "SCB": largest.float()})


def _codebook(stored: Mapping[str, Tensor], key: str) -> CodebookLinear:
    nested = ("weight.nested_absmax", "weight.nested_quant_map")
    pieces = Pieces(stored, ("weight", "weight.absmax", "weight.quant_map", key, *nested))
    state = _state(pieces.tensor(key, [torch.uint8], 1))
    rows, columns = _pair(state)
    width = _positive(state, "blocksize")
    count = rows * columns
    # bnb_4bit_quant_storage: the bytes may be called numbers of another type.
    held = pieces.tensor("weight", [torch.uint8, torch.bfloat16, torch.float16, torch.float32], 2)
    codes = held.contiguous().view(torch.uint8).view(-1, 1)
    fit("weight", codes, -(-count // 2), 1)
    fit("weight.quant_map", pieces.scales("weight.quant_map", 1), 16)
    blocks = -(-count // width)
    if "nested_blocksize" in state:
        fit("weight.absmax", pieces.tensor("weight.absmax", [torch.uint8], 1), blocks)
        outer = -(-blocks // _positive(state, "nested_blocksize"))
        fit("weight.nested_absmax", pieces.scales("weight.nested_absmax", 1), outer)
        fit("weight.nested_quant_map", pieces.scales("weight.nested_quant_map", 1), 256)
        if not isinstance(state.get("nested_offset"), float) or abs(state["nested_offset"]) > torch.finfo().max:
            raise ValueError(f"{key} has no finite nested_offset")
    else:
        fit("weight.absmax", pieces.scales("weight.absmax", 1), blocks)
    if state.get("dtype") not in DTYPES:
        raise ValueError(f"{key} has the dtype {state.get('dtype')!r}, which is none of {', '.join(DTYPES)}")
    return CodebookLinear({**stored, "weight": codes}, None)


def _state(octets: Tensor) -> dict[str, Any]:
    """Return the JSON in ``octets``. Raises ValueError where there is none."""
    try:
        state = json.loads(bytes(octets.tolist()))
    except (ValueError, RecursionError):
        state = None
    if isinstance(state, dict):
        return state
    raise ValueError("its quant_state is no JSON object")


def _pair(state: Mapping[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"its quant_state has the shape {shape!r}, not rows and columns")
    return shape[0], shape[1]


def _positive(state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"its quant_state has {key} {value!r}, not a whole number from 1 on")
    return value
