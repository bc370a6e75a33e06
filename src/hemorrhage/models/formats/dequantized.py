"""What forms have in common whose weight is dequantized whenever the layer computes (models.formats.storage)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DequantizedLinear(nn.Module):
    """A linear layer that computes with ``dense()``, which its kind defines."""

    storage_format: str
    keep = False
    scheme: dict[str, Any] | None = None

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """``shape`` is (rows, columns) of the weight, ``tensors`` what is stored of it, by suffix."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.tensors = nn.ParameterDict(
            {name: nn.Parameter(value, requires_grad=False) for name, value in tensors.items()}
        )
        self.bias = bias

    @property
    def parameters_count(self) -> int:
        """Weights that the stored numbers stand for."""
        return self.out_features * self.in_features

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, by suffix."""
        return {name: value.data for name, value in self.tensors.items()}

    def dense(self) -> Tensor:
        """Return the weights that a reader of the checkpoint sees: float32 [rows, columns]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., columns] through the dequantized layer."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dense().to(x.dtype), bias)
