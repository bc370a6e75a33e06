"""Integer weights packed as compressed-tensors stores them (format ``pack-quantized``).

``weight_packed`` int32 [rows, ceil(columns · bits / 32)], codes shifted to unsigned and laid bit to bit
across words; ``weight_scale`` [rows, groups]; for asymmetric grids ``weight_zero_point`` int32 [ceil(rows ·
bits / 32), groups]; ``weight_shape``. transformers reads it with compressed-tensors, vLLM too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.stream import rows_at_once


class PackedLinear(DequantizedLinear):
    """A linear layer of packed integers, dequantized whenever it computes."""

    storage_format = "packed"

    def __init__(self, stored: dict[str, Tensor], scheme: QuantizationScheme, bias: nn.Parameter | None) -> None:
        """Take the tensors ``stored`` as in the module's docstring; ``scheme`` is the configuration's group."""
        rows, columns = stored["weight_shape"].tolist()
        super().__init__((rows, columns), stored, bias)
        self.scheme: QuantizationScheme = scheme

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        bits = self.scheme["weights"]["num_bits"]
        words, scale = self.tensors["weight_packed"].data, self.tensors["weight_scale"].data.float()
        zero = None
        if "weight_zero_point" in self.tensors:
            zero = unpack(self.tensors["weight_zero_point"].data.T, bits, len(scale)).T.float()
        values = torch.empty(self.out_features, self.in_features, device=words.device)
        step = rows_at_once(self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            groups = values[rows].unflatten(1, (scale.shape[1], -1))
            groups.copy_(unpack(words[rows], bits, self.in_features).unflatten(1, (scale.shape[1], -1)))
            if zero is not None:
                groups.sub_(zero[rows].unsqueeze(2))
            groups.mul_(scale[rows].unsqueeze(2))
        return values


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes int8 [rows, columns] in ``words`` int32 [rows, ceil(columns · bits / 32)], 1 to 8 ``bits`` each.

    In memory the words are a row of octets, of which every ``bits`` hold eight codes.
    """
    # A column alone counts as contiguous, whatever lies between its words.
    octets: Tensor = words.contiguous().flatten().view(torch.uint8).view(len(words), -1)
    eights = -(-columns // 8)
    octets = torch.nn.functional.pad(octets, (0, max(0, eights * bits - octets.shape[1])))
    octets = octets[:, : eights * bits].unflatten(1, (eights, bits))
    codes: Tensor = octets.new_empty(len(words), eights, 8)
    for position in range(8):
        first, shift = divmod(position * bits, 8)
        code = octets[..., first] >> shift
        if shift + bits > 8:
            code |= octets[..., first + 1] << (8 - shift)
        codes[..., position] = code
    # What is below zero wraps around, and is negative once it is read as signed.
    codes.bitwise_and_(2**bits - 1).sub_(2 ** (bits - 1))
    return codes.flatten(1)[:, :columns].view(torch.int8)


def read(stored: dict[str, Tensor], scheme: QuantizationScheme | None) -> PackedLinear:
    """Return the layer that a checkpoint's tensors ``stored`` and its configuration describe."""
    if scheme is None:
        raise ValueError("packed weights without a group in config.json's quantization_config")
    return PackedLinear(stored, scheme, None)
