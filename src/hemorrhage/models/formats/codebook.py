"""4-bit codebooks, NF4 and FP4 (QLoRA, arXiv 2305.14314), stored as bitsandbytes stores them.

A weight is ``table[code] · absmax`` of its block; blocks are ``block_size`` neighbours of the flattened
matrix. Stored: ``weight`` uint8 [ceil(n / 2), 1], two codes a byte, the first in the high half;
``weight.quant_map`` float32 [16], the table; ``weight.absmax`` float32 [blocks];
``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``), the rest as JSON in bytes. With double quantization
absmax, less its mean, is itself coded, in blocks of 256: ``weight.absmax`` uint8, ``weight.nested_quant_map``
float32 [256], ``weight.nested_absmax`` float32. transformers reads it with bitsandbytes.
"""

from __future__ import annotations

import json
from typing import TypedDict

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear

STATE = "weight.quant_state.bitsandbytes__"


NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""QLoRA's appendix E: quantiles of the normal distribution, zero among them, over the largest."""

FP4 = tuple(value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3))
"""bitsandbytes' FP4 in the order of its bits (sign, two of exponent, one of mantissa), over the largest."""

TABLES = {"nf4": NF4, "fp4": FP4}


class QuantState(TypedDict, total=False):
    """What bitsandbytes stores as JSON beside the codes; ``nested_`` keys with double quantization alone."""

    quant_type: str
    blocksize: int
    dtype: str
    shape: list[int]
    nested_blocksize: int
    nested_dtype: str
    nested_offset: float


class CodebookLinear(DequantizedLinear):
    """A linear layer of codes of a table, dequantized whenever it computes."""

    storage_format = "codebook"

    def __init__(self, stored: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """Take the tensors ``stored`` as in the module's docstring."""
        (key,) = (key for key in stored if key.startswith(STATE))
        state = json.loads(bytes(stored[key].tolist()))
        rows, columns = state["shape"]
        super().__init__((rows, columns), {}, bias)
        # The names have dots, which torch's containers do not take.
        self._stored = stored
        self.state: QuantState = state

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, by suffix."""
        return self._stored

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns].

        bitsandbytes rounds them to the dtype of the weights that were quantized.
        """
        stored, state = self._stored, self.state
        codes = stored["weight"].flatten()
        values = stored["weight.quant_map"][torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()]
        absmax = stored["weight.absmax"]
        if "nested_blocksize" in state:
            coded = stored["weight.nested_quant_map"][absmax.long()]
            width = state["nested_blocksize"]
            absmax = spread(coded, stored["weight.nested_absmax"], width) + state["nested_offset"]
        weights = spread(values[: self.parameters_count], absmax, state["blocksize"])
        return weights.to(getattr(torch, state["dtype"])).float().view(self.out_features, self.in_features)


def spread(values: Tensor, absmax: Tensor, width: int) -> Tensor:
    """``values`` [n] times the ``absmax`` [blocks] of their block of ``width``; the last may be shorter."""
    return values * absmax.repeat_interleave(width)[: len(values)]


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> CodebookLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return CodebookLinear(stored, None)
