"""Integer weights of a rotated matrix: the layer's weight is ``W = U Q(Uᵀ W V) Vᵀ`` with orthogonal U and V.

Stored are the codes of ``Uᵀ W V`` and, as QuIP proposes (arXiv 2307.13304), the numbers that U and V are made
from again: ``rotated_packed``, ``rotated_scale``, ``rotated_shape`` and, for asymmetric grids,
``rotated_zero_point`` are what ``weight_packed`` and the others are in hemorrhage.models.formats.packed;
``rotated_bits`` int64 [1]; ``rotation`` int64 [2, 4], a row for U and one for V: seed, orders of the two
factors, and whether they are Hadamard matrices (hemorrhage.models.hadamard). The seeds are those of torch's
generator on the processor.

No engine reads this format, which is the bench's own. A loaded model has the dense weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import PackedLinear
from hemorrhage.models.hadamard import Rotation, rotation

Origin = tuple[int, int, int, bool]
"""What a rotation is made from: seed, orders of its factors, whether they are Hadamard matrices."""


class RotatedLinear(DequantizedLinear):
    """A linear layer whose weight is stored as packed integers in a rotated basis."""

    storage_format = "rotated"

    def __init__(self, stored: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """Take the tensors ``stored`` as in the module's docstring."""
        rows, columns = stored["rotated_shape"].tolist()
        super().__init__((rows, columns), stored, bias)

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        outward, inward = (build_rotation(origin) for origin in self.tensors["rotation"].tolist())
        rotated = self.rotated_weight()
        # Rotations are made on the processor, wherever the layer lies.
        weight = outward.restore(inward.restore(rotated.cpu()).T).T.contiguous()
        return weight.to(rotated.device)

    def rotated_weight(self) -> Tensor:
        """Return the dequantized ``Uᵀ W V``: float32 [rows, columns]."""
        packed = {name.replace("rotated", "weight"): value for name, value in self.stored().items()}
        scheme: QuantizationScheme = {"weights": {"num_bits": int(packed["weight_bits"])}}
        return PackedLinear(packed, scheme, None).dense()


def build_rotation(origin: Sequence[int]) -> Rotation:
    """Return the rotation that is made from ``origin``."""
    seed, left, right, from_hadamard = origin
    return rotation(seed, left, right, from_hadamard=bool(from_hadamard))


def rotated_linear(
    packed: dict[str, Tensor], bits: int, outward: Origin, inward: Origin, bias: nn.Parameter | None
) -> RotatedLinear:
    """Return the layer whose rotated weight ``Uᵀ W V`` has the tensors ``packed``; U is ``outward``, V ``inward``.

    ``packed`` is what hemorrhage.compress.solvers.packing.pack gives.
    """
    stored = {name.replace("weight", "rotated"): value for name, value in packed.items()}
    stored["rotated_bits"] = torch.tensor([bits])
    stored["rotation"] = torch.tensor([outward, inward])
    return RotatedLinear(stored, bias)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> RotatedLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return RotatedLinear(stored, None)
