"""Base of the storage formats whose weight is dequantized whenever the layer computes."""

from __future__ import annotations

from torch import Tensor, nn

from hemorrhage.models.formats.storage import FormattedLinear


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
