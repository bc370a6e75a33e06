"""HQQ checkpoints as its library and transformers write them: ``W = (W_q - zero) scale`` by groups.

The weight is seen as a matrix of groups: rows of ``group_size`` neighbours (``axis`` 1), or columns of them (``axis``
0). ``W_q`` holds its codes; ``packing`` says how, as text in bytes: a number of 8 or 32 bits has one code of each of
equally many rows, the first in the highest bits. ``scale`` and ``zero`` have one number a group; ``shape`` is that of
the weight. Other tensors of a layer say how it was made.

Our checkpoints have the tensors that reading needs, under the same names: ``W_q`` is in no other format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, whole

MARKS = ("W_q",)

NAMES = ("W_q", "scale", "zero", "shape", "axis", "group_size", "packing")

ASIDE = (
    "nbits", "channel_wise", "optimize", "round_zero", "compute_dtype", "offload_meta", "stores_quant_config",
    "encoded_state_dict", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero",
)  # fmt: skip
"""Tensors that say how a layer was made or is loaded by its library."""

PACKINGS = {
    "8bit_u8": (8, torch.uint8),
    "4bit_u8": (4, torch.uint8),
    "3bit_32": (3, torch.int32),
    "2bit_u8": (2, torch.uint8),
    "1bit_u8": (1, torch.uint8),
}
"""``packing`` -> bits of a code and type of the numbers that hold them; 30 bits of 32 have codes of 3."""


class HqqLinear(DequantizedLinear):
    """A linear layer of HQQ's codes, dequantized whenever it computes."""

    storage_format = "hqq"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring."""
        rows, columns = stored["shape"].tolist()
        super().__init__((rows, columns), stored, None)
        self.packing = _text(stored["packing"])

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], each step rounded to the type of the scales as in HQQ."""
        stored = self.stored()
        scale, zero = stored["scale"], stored["zero"]
        groups = self.out_features * self.in_features // int(stored["group_size"])
        # Codes of 3 bits fill up the last of their numbers.
        height = groups if int(stored["axis"]) == 1 else int(stored["group_size"])
        codes = _unpack(stored["W_q"], PACKINGS[self.packing][0])[:height].to(scale.dtype)
        return ((codes - zero) * scale).float().view(self.out_features, self.in_features)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes uint8 [n · codes a number, m] in ``packed`` [n, m]."""
    first = (packed.element_size() * 8 // bits - 1) * bits
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(first, -1, -bits)]).to(torch.uint8)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> HqqLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return HqqLinear(stored)


def read_published(stored: Mapping[str, Tensor], _quantization: Mapping[str, Any], _layer: str) -> HqqLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    pieces = Pieces(stored, (*NAMES, *ASIDE))
    for name in ("quant_scale", "quant_zero"):
        if name in pieces and pieces.number(name):
            raise ValueError(f"its scales or zero points are quantized themselves ({name}), which is not read")
    packing = _text(pieces.tensor("packing", [torch.uint8], 1))
    if packing not in PACKINGS:
        raise ValueError(f"packing {packing!r} is not read; {', '.join(PACKINGS)} are")
    rows, columns = _pair(pieces.tensor("shape", [torch.int64, torch.int32], 1))
    size, axis = pieces.number("group_size"), pieces.number("axis")
    if size < 1 or rows * columns % size or axis not in (0, 1):
        raise ValueError(f"groups of {size} along axis {axis} do not divide a weight of {rows} x {columns}")
    groups = rows * columns // size
    scale, zero = pieces.scales("scale"), pieces.scales("zero")
    fit("scale", scale, *((groups, 1) if axis == 1 else (1, groups)))
    fit("zero", zero, *scale.shape)
    if zero.dtype != scale.dtype:
        raise ValueError("zero and scale are not of one type")
    bits, held = PACKINGS[packing]
    # view_as_float: they may be called floating-point numbers.
    codes = pieces.tensor("W_q", [held, torch.float16, torch.bfloat16, torch.float32], 2).contiguous().view(held)
    height, width = (groups, size) if axis == 1 else (size, groups)
    fit("W_q", codes, -(-height // (held.itemsize * 8 // bits)), width)
    parameters = {"shape": [rows, columns], "group_size": [size], "axis": [axis]}
    return HqqLinear(
        {"W_q": codes, "scale": scale, "zero": zero, "packing": stored["packing"]}
        | {name: torch.tensor(value) for name, value in parameters.items()}
    )


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    settings = quantization.get("quant_config")
    settings = settings if isinstance(settings, Mapping) else {}
    of_weights = settings.get("weight_quant_params")
    if not isinstance(of_weights, Mapping):
        return "HQQ, layers of several kinds" if settings else "HQQ"
    return f"HQQ, {of_weights.get('nbits')} bits, {groups_in_words(whole(of_weights, 'group_size'))}"


def _text(octets: Tensor) -> str:
    """Return the text that a short tensor of bytes is."""
    return bytes(octets[:32].tolist()).decode(errors="replace")


def _pair(shape: Tensor) -> tuple[int, int]:
    sizes = shape.tolist()
    # A weight without its numbers is no weight; sizes are bounded by those of the tensors.
    if len(sizes) != 2 or min(sizes) < 1 or max(sizes) > 2**31:
        raise ValueError(f"shape is {sizes[:4]}, not rows and columns")
    return sizes[0], sizes[1]
