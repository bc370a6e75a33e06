"""Packed integers with float zero points: ``W = (W_q - z) s``.

``affine_packed``, ``affine_scale`` and ``affine_shape`` are what ``weight_packed`` and the others are in
hemorrhage.models.formats.packed, for codes of 1 to 8 bits. ``affine_zero_point`` [rows, groups] is in the dtype of the
scales; like the codes it counts from their middle. ``affine_bits`` is int64 [1]. Nothing is rounded when a layer is
written or read.

No engine reads this format: compressed-tensors' zero points are whole numbers, and transformers 5 does not read the
checkpoints of hqq. A loaded model has the dense weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import unpack
from hemorrhage.models.stream import rows_at_once


class AffineLinear(DequantizedLinear):
    """A linear layer of packed integers with float zero points, dequantized whenever it computes."""

    storage_format = "affine"

    def __init__(self, stored: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """Take ``stored`` as in the module's docstring."""
        rows, columns = stored["affine_shape"].tolist()
        super().__init__((rows, columns), stored, bias)

    def dense(self) -> Tensor:
        """Return the weights that a reader of the checkpoint sees: float32 [rows, columns]."""
        stored = self.stored()
        words, bits = stored["affine_packed"], int(stored["affine_bits"])
        # [rows, groups, 1]: one for all columns of a group.
        s, z = (stored[name].float().unsqueeze(2) for name in ("affine_scale", "affine_zero_point"))
        W = torch.empty(self.out_features, self.in_features, device=words.device)
        step = rows_at_once(self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            W_q = unpack(words[rows], bits, self.in_features).unflatten(1, (s.shape[1], -1))
            W[rows] = ((W_q - z[rows]) * s[rows]).flatten(1)
        return W


def affine_linear(packed: dict[str, Tensor], bits: int, bias: nn.Parameter | None) -> AffineLinear:
    """Make a layer of the tensors ``packed``, which hemorrhage.compress.solvers.packing.pack gives."""
    stored = {name.replace("weight", "affine"): value for name, value in packed.items()}
    return AffineLinear({**stored, "affine_bits": torch.tensor([bits])}, bias)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> AffineLinear:
    """Make the layer that a checkpoint's tensors ``stored`` describe."""
    return AffineLinear(stored, None)
