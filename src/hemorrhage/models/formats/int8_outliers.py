"""Signed bytes beside a few columns of 16 bits (LLM.int8, arXiv 2208.07339).

``outlier_codes`` int8 [rows, columns] and ``outlier_scale`` float32 [rows]: ``W = codes · scale``, but in the columns
``input_spared`` int64 [k], whose codes are zero: there W is ``outlier_weight`` [rows, k], in the dtype of the base.
The layer's input is rounded token by token to 8 bits, too, but not in those columns, which is what their name says
(hemorrhage.models.emulation.activations).

bitsandbytes finds the columns anew in every batch, and dequantizes weights of 8 bits there: no checkpoint holds what is
here, and no engine reads it. A loaded model has the dense weight.
"""

from __future__ import annotations

from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear

INPUTS: QuantizationArgs = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
}  # fmt: skip
"""How inputs are rounded where they are."""


class Int8OutlierLinear(DequantizedLinear):
    """A linear layer of signed bytes with columns of 16 bits, dequantized whenever it computes."""

    storage_format = "int8_outliers"

    def __init__(self, stored: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """Take ``stored`` as in the module's docstring. Raises ValueError where tensors don't fit each other."""
        rows, columns = stored["outlier_codes"].shape
        spared, weight = stored["input_spared"], stored["outlier_weight"]
        fits = stored["outlier_scale"].shape == (rows,) and weight.shape == (rows, len(spared))
        if not fits or len(spared.unique()) < len(spared) or bool(((spared < 0) | (spared >= columns)).any()):
            raise ValueError("outlier_scale, outlier_weight or input_spared does not fit outlier_codes")
        super().__init__((rows, columns), stored, bias)
        self.inputs = INPUTS

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        stored = self.stored()
        W = self.by_rows(lambda rows: stored["outlier_codes"][rows] * stored["outlier_scale"][rows].unsqueeze(1))
        W[:, stored["input_spared"]] = stored["outlier_weight"].float()
        return W


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> Int8OutlierLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return Int8OutlierLinear(stored, None)
