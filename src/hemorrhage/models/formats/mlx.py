"""Checkpoints that mlx-lm quantized: ``W = q scales + biases`` by groups of columns.

``weight`` uint32 [rows, columns · bits / 32] holds the codes of a row bit to bit, the first in the lowest bits;
``scales`` and ``biases`` [rows, columns / group_size]. config.json's ``quantization`` has ``bits`` and ``group_size``,
and under a layer's name those of this layer.

Our checkpoints have the tensors as ``mlx_weight``, ``mlx_scales`` and ``mlx_biases``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import unpack
from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, whole

MARKS = ("scales",)

NAMES = ("weight", "scales", "biases")

PREFIX = "mlx_"

WIDTHS = (2, 3, 4, 5, 6, 8)


class MlxLinear(DequantizedLinear):
    """A linear layer of MLX's codes, dequantized whenever it computes."""

    storage_format = "mlx"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring, of our names; ``mlx_columns`` int32 [1]."""
        super().__init__((len(stored["mlx_weight"]), int(stored["mlx_columns"])), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], each step rounded to the type of the scales as in MLX."""
        stored = self.stored()
        words, scales, biases = (stored[f"{PREFIX}{name}"] for name in NAMES)
        bits = words.shape[1] * 32 // self.in_features

        def piece(rows: slice) -> Tensor:
            q = unpack(words[rows], bits, self.in_features).int() + 2 ** (bits - 1)
            groups = q.to(scales.dtype).unflatten(1, (scales.shape[1], -1))
            W: Tensor = groups * scales[rows].unsqueeze(2) + biases[rows].unsqueeze(2)
            return W.flatten(1).float()

        return self.by_rows(piece)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> MlxLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return MlxLinear(stored)


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], layer: str) -> MlxLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    own = quantization.get(layer)
    settings = {**quantization, **own} if isinstance(own, Mapping) else quantization
    mode = settings.get("mode", "affine")
    if mode != "affine":
        raise ValueError(f"MLX's mode {mode!r} is not read; affine is")
    pieces = Pieces(stored, NAMES)
    words = pieces.tensor("weight", [torch.uint32], 2)
    scales, biases = pieces.scales("scales"), pieces.scales("biases")
    bits, size = whole(settings, "bits"), whole(settings, "group_size")
    if bits not in WIDTHS or size is None or size < 1:
        raise ValueError(f"MLX's bits {bits} and group_size {size} are not of {', '.join(map(str, WIDTHS))} bits")
    rows, groups = scales.shape
    columns = groups * size
    fit("biases", biases, rows, groups)
    fit("weight", words, rows, -(-columns * bits // 32))
    if columns * bits % 32 or biases.dtype != scales.dtype:
        raise ValueError(f"scales and biases are of two types, or {columns} columns of {bits} bits do not fill words")
    named = {"mlx_weight": words.view(torch.int32), "mlx_scales": scales, "mlx_biases": biases}
    return MlxLinear(named | {"mlx_columns": torch.tensor([columns], dtype=torch.int32)})


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    mixed = ", some layers otherwise" if any(isinstance(each, Mapping) for each in quantization.values()) else ""
    size = groups_in_words(whole(quantization, "group_size"))
    return f"MLX, {whole(quantization, 'bits')} bits, {size}{mixed}"
