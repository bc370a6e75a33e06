"""Weights that a checkpoint stores as a mask (hemorrhage.models.weights), made whenever the layer computes."""

from __future__ import annotations

from torch import Tensor, nn

from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.weights import Weights


class MaskedLinear(DequantizedLinear):
    """A linear layer of a model that is read block by block: nothing of it is in memory between two passes."""

    storage_format = "masked"

    def __init__(self, weights: Weights, name: str, bias: Tensor | None) -> None:
        """``name``: that of the weight [rows, columns] in the checkpoint ``weights``."""
        rows, columns = weights.shape(name)
        super().__init__((rows, columns), {}, None if bias is None else nn.Parameter(bias, requires_grad=False))
        self._weights, self._name = weights, name

    def dense(self) -> Tensor:
        """Return the weights: float32 [rows, columns]."""
        return self._weights.tensor(self._name).float()
