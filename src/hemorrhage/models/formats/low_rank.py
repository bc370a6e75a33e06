"""A linear layer as the product of two thin ones, which a loaded model computes one after the other.

``low_rank_in`` [rank, columns] and ``low_rank_out`` [rows, rank]; the weight they stand for is their product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.storage import FormattedLinear


class LowRankLinear(FormattedLinear):
    """``y = out (in x) + bias``."""

    storage_format = "low_rank"
    keep = True

    def __init__(self, inner: Tensor, outer: Tensor, bias: nn.Parameter | None) -> None:
        """``inner`` [rank, columns], ``outer`` [rows, rank]."""
        super().__init__()
        self.inner = nn.Parameter(inner, requires_grad=False)
        self.outer = nn.Parameter(outer, requires_grad=False)
        self.bias = bias
        self.in_features, self.out_features = inner.shape[1], outer.shape[0]

    @property
    def parameters_count(self) -> int:
        """Number of weights of both factors."""
        return self.inner.numel() + self.outer.numel()

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, by suffix."""
        return {"low_rank_in": self.inner.data, "low_rank_out": self.outer.data}

    def dense(self) -> Tensor:
        """Return the product: float32 [rows, columns]."""
        return self.outer.data.float() @ self.inner.data.float()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., columns] through both factors."""
        inner = torch.nn.functional.linear(x, self.inner.to(x.dtype))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.nn.functional.linear(inner, self.outer.to(x.dtype), bias)


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> LowRankLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return LowRankLinear(stored["low_rank_in"], stored["low_rank_out"], None)
