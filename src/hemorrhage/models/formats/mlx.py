"""Checkpoints that mlx-lm quantized, by groups of columns: ``W = q scales + biases``, or small floats times scales.

``weight`` uint32 [rows, columns · bits / 32] holds the codes of a row bit to bit, the first in the lowest bits;
``scales`` and ``biases`` [rows, columns / group_size]. config.json's ``quantization`` has ``bits``, ``group_size`` and
``mode``, and under a layer's name those of this layer. In other modes than ``affine`` codes are floats of 4 bits (E2M1)
or 8 (E4M3), there are no biases, and ``scales`` uint8 are powers of two (E8M0) or E4M3.

Our checkpoints have the tensors as ``mlx_weight``, ``mlx_scales`` and ``mlx_biases``, with ``mlx_columns`` int32 [1];
those without biases have ``mlx_mode`` int32 [1], the mode's place in ``MODES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import unpack
from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, whole

MARKS = ("scales",)

NAMES = ("weight", "scales", "biases")

PREFIX = "mlx_"

WIDTHS = (1, 2, 3, 4, 5, 6, 8)

MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Mode -> bits and group size. Their order is on disk."""


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


class MlxFloatLinear(DequantizedLinear):
    """A linear layer of MLX's small floats, dequantized whenever it computes."""

    storage_format = "mlx"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring, of our names."""
        self.mode = tuple(MODES)[int(stored["mlx_mode"])]
        super().__init__((len(stored["mlx_weight"]), int(stored["mlx_columns"])), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], of numbers that bfloat16 has, as MLX's."""
        stored = self.stored()
        octets, scales = stored["mlx_weight"].view(torch.uint8), stored["mlx_scales"]

        def piece(rows: slice) -> Tensor:
            values = small_floats.unpack_e2m1(octets[rows]) if self.mode != "mxfp8" else _e4m3(octets[rows])
            factors = _e4m3(scales[rows]) if self.mode == "nvfp4" else small_floats.powers_of_two(scales[rows])
            W: Tensor = values.unflatten(1, (scales.shape[1], -1)) * factors.unsqueeze(2)
            return W.flatten(1)

        return self.by_rows(piece)


def _e4m3(octets: Tensor) -> Tensor:
    """Return the numbers float32 that bytes of E4M3 are."""
    return octets.view(torch.float8_e4m3fn).float()


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> MlxLinear | MlxFloatLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return MlxFloatLinear(stored) if "mlx_mode" in stored else MlxLinear(stored)


def read_published(
    stored: Mapping[str, Tensor], quantization: Mapping[str, Any], layer: str
) -> MlxLinear | MlxFloatLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    own = quantization.get(layer)
    settings = {**quantization, **own} if isinstance(own, Mapping) else quantization
    mode = settings.get("mode", "affine")
    if mode in MODES:
        return _floats(stored, mode)
    if mode != "affine":
        raise ValueError(f"MLX's mode {mode!r} is not read; affine, {', '.join(MODES)} are")
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


def _floats(stored: Mapping[str, Tensor], mode: str) -> MlxFloatLinear:
    """Return the layer of floats in ``mode``. Raises ValueError."""
    pieces = Pieces(stored, ("weight", "scales"))
    words = pieces.tensor("weight", [torch.uint32], 2)
    scales = pieces.tensor("scales", [torch.uint8], 2)
    bits, size = MODES[mode]
    columns = scales.shape[1] * size
    fit("scales", scales, len(words), scales.shape[1])
    fit("weight", words, len(scales), columns * bits // 32)
    codes = words.view(torch.uint8) if mode == "mxfp8" else torch.zeros(1, dtype=torch.uint8)
    without_number = scales == 255 if mode != "nvfp4" else scales & 127 == 127
    if bool(without_number.any()) or bool((codes & 127 == 127).any()):
        raise ValueError("scales or weight have codes that stand for no number")
    parameters = {"mlx_mode": list(MODES).index(mode), "mlx_columns": columns}
    return MlxFloatLinear(
        {"mlx_weight": words.view(torch.int32), "mlx_scales": scales}
        | {name: torch.tensor([value], dtype=torch.int32) for name, value in parameters.items()}
    )


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    mixed = ", some layers otherwise" if any(isinstance(each, Mapping) for each in quantization.values()) else ""
    size = groups_in_words(whole(quantization, "group_size"))
    mode = quantization.get("mode", "affine")
    kind = "" if mode == "affine" else f" {str(mode)[:20].upper()}"
    return f"MLX{kind}, {whole(quantization, 'bits')} bits, {size}{mixed}"
