"""Layers whose grid a GGUF block type has, as blocks of it: nothing is rounded but scales and minima, to float16.

A block of 32 weights is ``d q`` with whole numbers q of 4 (Q4_0), 5 (Q5_0) or 8 bits (Q8_0), or ``d q + m`` with q of
4 (Q4_1) or 5 bits (Q5_1), or numbers of E2M1 times a power of two (MXFP4). Fewer bits fit a type of more. A larger
group is several blocks of one scale. A group with a zero point is symmetric around it: where the difference of code and
zero point fits, it is the code, else ``m = -d z``.

A bfloat16 scale is a float16 one, where it lies between 2^-17 and 65504. A float32 scale is rounded by at most one part
in 2048, and so is a minimum; where they are smaller than float16's normal numbers, by at most 2^-25.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hemorrhage.models.formats.affine import AffineLinear
from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.floats import FloatLinear
from hemorrhage.models.formats.int8 import Int8Linear
from hemorrhage.models.formats.mxfp4 import BLOCKS, SCALES, MicroscaledLinear
from hemorrhage.models.formats.packed import PackedLinear, unpack
from hemorrhage.models.formats.storage import FormattedLinear

WIDTH = 32
"""Weights of a block."""

SYMMETRIC = {4: "q4_0", 5: "q5_0", 8: "q8_0"}
"""Bits of a whole number with a sign -> the type."""

WITH_MINIMUM = {4: "q4_1", 5: "q5_1"}
"""Bits of a whole number from 0 on -> the type."""


@dataclass(frozen=True)
class _Grid:
    """Whole numbers of a layer: ``codes`` int8 [rows, columns] of ``bits`` with a sign, ``scale`` [rows, groups].

    A weight is ``(code - zero) scale``; ``zero`` [rows, groups] or None. ``is_whole``: zero points are whole numbers.
    """

    codes: Tensor
    bits: int
    scale: Tensor
    zero: Tensor | None
    is_whole: bool = True


def block_type(layer: FormattedLinear) -> str:
    """Return the type whose blocks can hold ``layer``. Raises ValueError, which says why none can."""
    if isinstance(layer, MicroscaledLinear) or _is_mxfp4(layer):
        return "mxfp4"
    bits, has_zero, is_whole, groups = _shape_of_grid(layer)
    if layer.in_features % groups or layer.in_features // groups % WIDTH:
        size = layer.in_features // groups
        raise ValueError(f"groups of {size} weights are no multiple of GGUF's blocks of {WIDTH}")
    if has_zero and is_whole and bits not in WITH_MINIMUM:
        bits, has_zero = bits + 1, False
    for wide, name in (WITH_MINIMUM if has_zero else SYMMETRIC).items():
        if bits <= wide:
            return name
    raise ValueError(f"no GGUF type has whole numbers of {bits - is_whole} bits with zero points")


def blocks(layer: FormattedLinear) -> Tensor:
    """Return the blocks of ``layer`` in its ``block_type``: uint8 [rows, bytes of a row].

    Raises ValueError where none has it, or a scale is greater than float16's numbers.
    """
    kind = block_type(layer)
    if kind == "mxfp4":
        return _mxfp4(layer)
    grid = _grid(layer)
    # [rows, groups, weights of a group], so that scales and zero points go along.
    codes = grid.codes.unflatten(1, (grid.scale.shape[1], -1)).int()
    d = _half(grid.scale)
    parts = [_for_each_block(d, codes)]
    if kind in WITH_MINIMUM.values():
        half = 2 ** (grid.bits - 1)
        assert grid.zero is not None
        m = _half(-d.double() * (grid.zero.double() + half))
        parts.append(_for_each_block(m, codes))
        numbers = codes + half
    else:
        numbers = codes if grid.zero is None else codes - grid.zero.unsqueeze(2).int()
        numbers += {"q4_0": 8, "q5_0": 16, "q8_0": 0}[kind]
    octets = numbers.reshape(-1, WIDTH).to(torch.int8).view(torch.uint8)
    if kind.startswith("q5"):
        parts.append(_fifth_bits(octets))
    parts.append(octets if kind == "q8_0" else _halves(octets & 15))
    return torch.cat(parts, dim=1).view(layer.out_features, -1)


def _shape_of_grid(layer: FormattedLinear) -> tuple[int, bool, bool, int]:
    """Return bits, whether there are zero points, whether these are whole, and groups of a row."""
    match layer:
        case PackedLinear():
            has_zero = "weight_zero_point" in layer.tensors
            bits = int(layer.scheme["weights"]["num_bits"])
            return bits, has_zero, True, layer.tensors["weight_scale"].shape[1]
        case Int8Linear():
            return 8, False, True, layer.tensors["weight_scale"].shape[1]
        case AffineLinear():
            return int(layer.tensors["affine_bits"]), True, False, layer.tensors["affine_scale"].shape[1]
    raise ValueError(f"no GGUF type has the numbers of its form ({layer.storage_format})")


def _grid(layer: FormattedLinear) -> _Grid:
    bits, has_zero, is_whole, _ = _shape_of_grid(layer)
    stored = layer.stored()
    if isinstance(layer, Int8Linear):
        return _Grid(stored["weight"], bits, stored["weight_scale"], None)
    prefix = "weight" if isinstance(layer, PackedLinear) else "affine"
    codes, scale = unpack(stored[f"{prefix}_packed"], bits, layer.in_features), stored[f"{prefix}_scale"]
    zero = stored[f"{prefix}_zero_point"] if has_zero else None
    if zero is not None and is_whole:
        zero = unpack(zero.T, bits, len(scale)).T
    return _Grid(codes, bits, scale, zero, is_whole)


def _is_mxfp4(layer: FormattedLinear) -> bool:
    if not isinstance(layer, CompressedLinear | FloatLinear):
        return False
    stored, arguments = layer.stored(), layer.scheme["weights"]
    is_e2m1 = stored.get("weight_packed", torch.empty(0)).dtype == torch.uint8
    is_power = stored["weight_scale"].dtype in (torch.uint8, torch.float8_e8m0fnu)
    return is_e2m1 and is_power and arguments.get("group_size") == WIDTH and "weight_global_scale" not in stored


def _mxfp4(layer: FormattedLinear) -> Tensor:
    stored = layer.stored()
    names = (BLOCKS, SCALES) if isinstance(layer, MicroscaledLinear) else ("weight_packed", "weight_scale")
    pairs, exponents = (stored[name].view(torch.uint8) for name in names)
    # Neighbours share a byte, in GGUF weights that are 16 apart.
    codes = torch.stack([pairs.flatten(1) & 15, pairs.flatten(1) >> 4], dim=2).view(-1, WIDTH)
    return torch.cat([exponents.reshape(-1, 1), _halves(codes)], dim=1).view(layer.out_features, -1)


def _half(values: Tensor) -> Tensor:
    halves = values.half()
    if not bool(halves.isfinite().all()):
        raise ValueError(f"a scale of {values.abs().max():.3g} is greater than float16's numbers")
    return halves


def _for_each_block(values: Tensor, codes: Tensor) -> Tensor:
    """Return the bytes of float16 ``values`` [rows, groups] for each block of the groups' ``codes``: [blocks, 2]."""
    repeated = values.repeat_interleave(codes.shape[2] // WIDTH, dim=1)
    return repeated.reshape(-1, 1).contiguous().view(torch.uint8)


def _halves(codes: Tensor) -> Tensor:
    """Return codes of 4 bits [blocks, 32] in 16 bytes: the first half's low, the second's high."""
    return codes[:, :16] | (codes[:, 16:] << 4)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Return the fifth bit of 32 codes in 4 bytes, the first code's lowest."""
    bits = (codes >> 4 & 1).view(-1, 4, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
