"""Integer weights as compressed-tensors stores them a byte each (format ``int-quantized``).

``weight`` int8 [rows, columns], the codes; ``weight_scale`` [rows, groups]; ``input_scale`` [1] where the
inputs have one fixed scale. Engines read this format for 8-bit weights with 8-bit inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear


class Int8Linear(DequantizedLinear):
    """A linear layer of signed bytes with a scale for each row or group, dequantized whenever it computes."""

    storage_format = "int8"

    def __init__(self, stored: dict[str, Tensor], scheme: QuantizationScheme, bias: nn.Parameter | None) -> None:
        """Take the tensors ``stored`` as in the module's docstring; ``scheme`` is the configuration's group."""
        rows, columns = stored["weight"].shape
        super().__init__((rows, columns), stored, bias)
        self.scheme = scheme

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        scale: Tensor = self.tensors["weight_scale"].data.float()
        groups: Tensor = self.tensors["weight"].data.float().unflatten(1, (scale.shape[1], -1))
        return (groups * scale.unsqueeze(2)).flatten(1)


def read(stored: dict[str, Tensor], scheme: QuantizationScheme | None) -> Int8Linear:
    """Return the layer that a checkpoint's tensors ``stored`` and its configuration describe.

    Raises ValueError for weights with a scale that are not symmetric int8.
    """
    dtype = stored["weight"].dtype if "weight" in stored else None
    if scheme is None or dtype != torch.int8 or "weight_zero_point" in stored:
        raise ValueError(f"a weight of {dtype} with a scale: only symmetric int8 weights are read")
    return Int8Linear(stored, scheme, None)
