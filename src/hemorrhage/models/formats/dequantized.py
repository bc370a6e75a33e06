"""Base of the storage formats whose weight is dequantized whenever the layer computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.storage import FormattedLinear
from hemorrhage.models.stream import rows_at_once


class DequantizedLinear(FormattedLinear):
    """A linear layer that computes with ``dense()``, which its format defines."""

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """``shape`` is (rows, columns) of the weight, ``tensors`` what is stored of it, by suffix."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.tensors = nn.ParameterDict(
            {name: nn.Parameter(value, requires_grad=False) for name, value in tensors.items()}
        )
        self.bias = bias

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, by suffix."""
        return {name: value.data for name, value in self.tensors.items()}

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., columns] through the dequantized layer."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dense().to(x.dtype), bias)

    def by_rows(self, piece: Callable[[slice], Tensor], of: int = 1) -> Tensor:
        """Return float32 [rows, columns] of what ``piece`` gives for some rows at a time, a multiple of ``of``."""
        first = next(iter(self.tensors.values()))
        W = torch.empty(self.out_features, self.in_features, device=first.device)
        step = -(-rows_at_once(self.in_features) // of) * of
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            W[rows] = piece(rows)
        return W
