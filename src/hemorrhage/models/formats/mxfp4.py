"""MXFP4 as gpt-oss publishes it: numbers of E2M1 in groups of 32 with a power of two each.

On disk all experts of a block are one group of tensors: ``gate_up_proj_blocks`` uint8 [experts, 2 · width, groups, 16],
in which rows of gate and up take turns, ``gate_up_proj_scales`` uint8 [experts, 2 · width, groups],
``gate_up_proj_bias`` [experts, 2 · width], and the same of ``down_proj``. The bench stores each matrix by itself:
``mx_blocks`` uint8 [rows, groups, 16], two numbers a byte, the first in its low half, and ``mx_scales`` uint8 [rows,
groups], the exponent of the power plus 127. The dense weight is the same in bfloat16, which transformers computes in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.storage import FormattedLinear

BLOCKS, SCALES = "mx_blocks", "mx_scales"

MARKS = ("gate_up_proj_blocks", "down_proj_blocks")
"""Suffixes of the tensors of quantized experts."""

GROUP = 32

_SUFFIX = re.compile(r"(.*\.experts)\.((?:gate_up_proj|down_proj)_(?:blocks|scales|bias))")

_HALVES = {
    "gate_up_proj": {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)},
    "down_proj": {"down_proj": slice(None)},
}


class MicroscaledLinear(DequantizedLinear):
    """A linear layer of E2M1 numbers with a power of two for each 32, dequantized whenever it computes."""

    storage_format = "mxfp4"

    def __init__(self, stored: Mapping[str, Tensor], bias: nn.Parameter | None = None) -> None:
        """Take ``mx_blocks`` and ``mx_scales``. Raises ValueError where they don't fit each other."""
        check(stored)
        rows, groups, _ = stored[BLOCKS].shape
        super().__init__((rows, groups * GROUP), dict(stored), bias)

    def dense(self) -> Tensor:
        """Return what transformers dequantizes: float32 [rows, columns], of numbers that bfloat16 has."""
        blocks, scales = (self.tensors[name].data for name in (BLOCKS, SCALES))

        def piece(rows: slice) -> Tensor:
            factors = small_floats.powers_of_two(scales[rows]).unsqueeze(2)
            return (small_floats.unpack_e2m1(blocks[rows]) * factors).flatten(1)

        return self.by_rows(piece)


def regroup(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the tensors of each block's experts among ``names``, by suffix."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        match = _SUFFIX.fullmatch(name)
        if match is not None:
            groups.setdefault(match[1], {})[match[2]] = name
    return {layer: suffixes for layer, suffixes in groups.items() if any(mark in suffixes for mark in MARKS)}


def read_stack(
    stored: Mapping[str, Tensor], _quantization: Mapping[str, Any], layer: str
) -> dict[str, FormattedLinear]:
    """Return the matrices of each expert in ``stored``, under the bench's names, with their biases."""
    layers: dict[str, FormattedLinear] = {}
    for surplus in sorted(
        set(stored) - {f"{name}_{part}" for name in _HALVES for part in ("blocks", "scales", "bias")}
    ):
        raise ValueError(f"unexpected tensor {surplus}")
    for projection, halves in _HALVES.items():
        blocks, scales, bias = _stack(stored, projection)
        for index in range(len(blocks)):
            for name, rows in halves.items():
                # A half's rows lie apart in the file, and are stored by themselves.
                tensors = {BLOCKS: blocks[index, rows].contiguous(), SCALES: scales[index, rows].contiguous()}
                own = None if bias is None else nn.Parameter(bias[index, rows].contiguous(), requires_grad=False)
                layers[f"{layer}.{index}.{name}"] = MicroscaledLinear(tensors, own)
    if len(layers) % 3:
        raise ValueError("gate_up_proj and down_proj have different numbers of experts")
    return layers


def read_published(stored: Mapping[str, Tensor], _quantization: Mapping[str, Any], _layer: str) -> MicroscaledLinear:
    """Raise ValueError: what gpt-oss quantizes are stacks of experts."""
    raise ValueError(f"{', '.join(sorted(stored))} of a layer that is no stack of experts can't be read as MXFP4")


def describe(_quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    return "MXFP4 experts, groups of 32"


def check(stored: Mapping[str, Tensor]) -> None:
    """Raise ValueError where ``mx_blocks`` and ``mx_scales`` don't fit each other."""
    if set(stored) != {BLOCKS, SCALES}:
        raise ValueError(f"needs {BLOCKS} and {SCALES}, and has {', '.join(sorted(stored))}")
    blocks, scales = stored[BLOCKS], stored[SCALES]
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ValueError(f"blocks of type {blocks.dtype} with scales of type {scales.dtype} are not MXFP4")
    if blocks.dim() != 3 or blocks.shape[2] != GROUP // 2 or blocks.shape[:2] != scales.shape or not blocks.numel():
        raise ValueError(f"blocks of shape {list(blocks.shape)} don't fit scales of shape {list(scales.shape)}")
    if bool((scales == 255).any()):
        raise ValueError("a scale is not a number")


def _stack(stored: Mapping[str, Tensor], projection: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return blocks, scales and biases of all experts. Raises ValueError where one is missing or does not fit."""
    for part in ("blocks", "scales"):
        if f"{projection}_{part}" not in stored:
            raise ValueError(f"{projection}_{part} is missing")
    blocks, scales = stored[f"{projection}_blocks"], stored[f"{projection}_scales"]
    bias = stored.get(f"{projection}_bias")
    if blocks.dim() != 4 or blocks.shape[:3] != scales.shape or not blocks.numel():
        raise ValueError(f"{projection}_blocks {list(blocks.shape)} don't fit {projection}_scales {list(scales.shape)}")
    if projection == "gate_up_proj" and blocks.shape[1] % 2:
        raise ValueError(f"gate_up_proj_blocks has {blocks.shape[1]} rows: an odd number")
    if bias is not None and (bias.shape != blocks.shape[:2] or bias.dtype not in small_floats.REAL):
        raise ValueError(f"{projection}_bias of shape {list(bias.shape)} does not fit {list(blocks.shape[:2])} rows")
    return blocks, scales, bias


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> MicroscaledLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return MicroscaledLinear(stored)
