"""torchao's tensors as transformers writes them to safetensors: ``W = (q - z) s``.

Of a layer's weight ``_weight_qdata``, ``_weight_scale`` and maybe ``_weight_zero_point``:

- bytes (Int8Tensor, IntxUnpackedToInt8Tensor): int8 [rows, columns]; scale and zero point [rows / a, columns / b];
- float8 (Float8Tensor): float8 [rows, columns]; scale as with bytes, no zero point;
- two codes a byte (Int4Tensor): int8 [rows, columns / 2], the first code of two in the lower half, -8 to 7; scale and
  zero point [groups, rows], and ``W = q s + z``.

Inputs that torchao rounds when it computes stay as they are. Our checkpoints have the tensors as ``torchao_qdata`` and
so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.pieces import FLOATS, Pieces, fit

MARKS = ("_weight_qdata",)

NAMES = ("qdata", "scale", "zero_point")

THEIRS, OURS = "_weight_", "torchao_"

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class TorchaoLinear(DequantizedLinear):
    """A linear layer of torchao's numbers of 8 bits, dequantized whenever it computes."""

    storage_format = "torchao"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring, of our names."""
        rows, columns = stored["torchao_qdata"].shape
        self.is_packed = is_packed(stored, OURS)
        super().__init__((rows, columns * 2 if self.is_packed else columns), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns] before torchao rounds it to the type of the model.

        Each step is rounded to the type of the scales, which is float32 for Int8Tensor and Float8Tensor.
        """
        return self.by_rows(self._packed if self.is_packed else self._bytes)

    def _bytes(self, rows: slice) -> Tensor:
        stored = self.stored()
        scale, zero = stored["torchao_scale"], stored.get("torchao_zero_point")
        q = stored["torchao_qdata"][rows]
        q = q.float() if q.dtype in FLOAT8 else q.to(scale.dtype)
        if zero is not None:
            q = q - self._spread(zero, rows).to(scale.dtype)
        return (q * self._spread(scale, rows)).float()

    def _packed(self, rows: slice) -> Tensor:
        stored = self.stored()
        scale, zero = (stored[f"torchao_{name}"][:, rows].T.unsqueeze(2) for name in ("scale", "zero_point"))
        octets = stored["torchao_qdata"][rows].view(torch.int8)
        # Shifting left and back brings the sign of the lower half.
        q = torch.stack([octets << 4 >> 4, octets >> 4], dim=2).flatten(1).to(scale.dtype)
        W: Tensor = q.unflatten(1, (scale.shape[1], -1)) * scale + zero
        return W.flatten(1).float()

    def _spread(self, values: Tensor, rows: slice) -> Tensor:
        """Return the number of each weight of ``rows`` among those of blocks ``values``."""
        height, width = self.out_features // len(values), self.in_features // values.shape[1]
        of_rows = torch.arange(self.out_features, device=values.device)[rows] // height
        spread: Tensor = values[of_rows].repeat_interleave(width, dim=1)
        return spread


def is_packed(stored: Mapping[str, Tensor], prefix: str) -> bool:
    """Return whether a layer's bytes hold two codes each: its zero points are floats by groups, then rows."""
    zero = stored.get(f"{prefix}zero_point")
    if zero is None or zero.dtype not in FLOATS:
        return False
    q = stored[f"{prefix}qdata"]
    return zero.ndim == q.ndim == 2 and zero.shape[1] == len(q)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> TorchaoLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return TorchaoLinear(stored)


def read_published(stored: Mapping[str, Tensor], _quantization: Mapping[str, Any], _layer: str) -> TorchaoLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    pieces = Pieces(stored, [f"{THEIRS}{name}" for name in NAMES])
    q = pieces.tensor("_weight_qdata", [torch.int8, torch.uint8, *FLOAT8], 2)
    scale = pieces.scales("_weight_scale")
    sizes, blocks = _two_a_byte(pieces, q, scale) if is_packed(stored, THEIRS) else _one_a_byte(pieces, q, scale)
    if any(size % count for size, count in zip(sizes, blocks, strict=True)):
        raise ValueError(f"scales {list(scale.shape)} do not divide _weight_qdata {list(q.shape)}")
    return TorchaoLinear({f"{OURS}{name}": stored[f"{THEIRS}{name}"] for name in NAMES if f"{THEIRS}{name}" in stored})


_KNOWN = "Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor, Int4Tensor"


def _one_a_byte(pieces: Pieces, q: Tensor, scale: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the weight and of its blocks. Raises ValueError."""
    has_zero = "_weight_zero_point" in pieces
    if q.dtype == torch.uint8 or (has_zero and q.dtype != torch.int8):
        raise ValueError(f"_weight_qdata with these scales is not one of torchao's tensors that are read: {_KNOWN}")
    if has_zero:
        fit("_weight_zero_point", pieces.tensor("_weight_zero_point", [torch.int8, *FLOATS], 2), *scale.shape)
    return q.shape, scale.shape


def _two_a_byte(pieces: Pieces, q: Tensor, scale: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the columns of the weight and the groups that divide them. Raises ValueError."""
    zero = pieces.scales("_weight_zero_point")
    fit("_weight_scale", scale, len(zero), len(q))
    if q.dtype in FLOAT8 or zero.dtype != scale.dtype:
        raise ValueError("two codes a byte need bytes, and scales and zero points of one type")
    return (2 * q.shape[1],), (len(scale),)


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words: the name of torchao's configuration."""
    kind = quantization.get("quant_type")
    default = kind.get("default") if isinstance(kind, Mapping) else kind
    name = default.get("_type") if isinstance(default, Mapping) else default
    return f"torchao, {name if isinstance(name, str) else json.dumps(name)[:60]}"
