"""AWQ checkpoints in the order of its GEMM kernel, as AutoAWQ, GPTQModel and auto-round write them: ``W = (q - z) s``.

``qweight`` int32 [columns, rows / 8] and ``qzeros`` int32 [groups, rows / 8] hold eight codes of 4 bits a word. The
lowest bits are of row 0 of eight, then come 2, 4, 6, 1, 3, 5 and 7. ``scales`` [groups, rows]; groups are of columns
that follow each other.

Our checkpoints have the same tensors as ``awq_qweight`` and so on, because GPTQ has other tensors of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, whole

MARKS = ("qweight",)

NAMES = ("qweight", "qzeros", "scales")

PREFIX = "awq_"

VERSIONS = ("gemm", "exllama", "ipex")
"""``version`` of configurations whose files are in the order of GEMM; the others name an engine that repacks them."""

SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""Where in a word the code of each of eight rows begins."""


class AwqLinear(DequantizedLinear):
    """A linear layer of AWQ's packed codes, dequantized whenever it computes."""

    storage_format = "awq"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring, of our names."""
        super().__init__((stored["awq_scales"].shape[1], len(stored["awq_qweight"])), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], rounded to the type of the scales as in AutoAWQ."""
        stored = self.stored()
        scales = stored["awq_scales"]
        width = self.in_features // len(scales)

        def piece(rows: slice) -> Tensor:
            words = slice(rows.start // 8, rows.stop // 8)
            q, z = (_unpack(stored[name][:, words]).float() for name in ("awq_qweight", "awq_qzeros"))
            s = scales[:, rows].float()
            # A product of a code and a scale of 16 bits is exact in float32: it is rounded once.
            W = (q.unflatten(0, (-1, width)) - z.unsqueeze(1)) * s.unsqueeze(1)
            rounded: Tensor = W.flatten(0, 1).to(scales.dtype)
            return rounded.T.float()

        return self.by_rows(piece, of=8)


def _unpack(words: Tensor) -> Tensor:
    """Return the codes uint8 [n, 8 · m] of ``words`` int32 [n, m]."""
    return torch.stack([words >> shift & 15 for shift in SHIFTS], dim=2).flatten(1).to(torch.uint8)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> AwqLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return AwqLinear(stored)


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> AwqLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    version = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
    if version not in VERSIONS:
        raise ValueError(f"AWQ's version {version!r} packs in another order, which is not read; gemm is")
    return layer_of(stored, quantization)


def layer_of(stored: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> AwqLinear:
    """Return the layer of tensors ``stored`` in the order of GEMM. Raises ValueError."""
    bits = whole(quantization, "bits", "w_bit")
    if bits not in (4, None):
        raise ValueError(f"AWQ with {bits} bits is not read; 4 are")
    pieces = Pieces(stored, NAMES)
    words = pieces.tensor("qweight", [torch.int32], 2)
    zeros = pieces.tensor("qzeros", [torch.int32], 2)
    scales = pieces.scales("scales")
    groups, rows = scales.shape
    columns = len(words)
    fit("qweight", words, columns, rows // 8)
    fit("qzeros", zeros, groups, rows // 8)
    if rows % 8 or columns % groups:
        raise ValueError(f"{groups} groups and words of 8 rows do not divide a weight of {rows} x {columns}")
    return AwqLinear({f"{PREFIX}{name}": stored[name] for name in NAMES})


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    size = whole(quantization, "group_size", "q_group_size")
    return f"AWQ, {whole(quantization, 'bits', 'w_bit')} bits, {groups_in_words(size)}"
