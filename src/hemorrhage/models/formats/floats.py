"""Floating-point weights of 4 and 8 bits as compressed-tensors stores them, computed in float32.

``weight`` float8_e4m3fn [rows, columns], or ``weight_packed`` uint8 [rows, columns / 2], two numbers of E2M1 a byte.
``weight_scale``: of the checkpoint's dtype [1], [rows, 1] or [blocks of rows, blocks of columns]; float8_e4m3fn [rows,
groups], which ``weight_global_scale`` float32 [1] divides (NVFP4); uint8 [rows, groups], exponents of two (MX).
``input_scale`` or ``input_global_scale`` [1] where the inputs have one that is fixed.

What others stored is hemorrhage.models.formats.compressed, which computes in the dtype of the scale as
compressed-tensors does; the groups of their configuration have ``scale_dtype``, these get it when they are exported.
"""

from __future__ import annotations

from torch import Tensor, nn

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import QuantizationConfig, QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear


class FloatLinear(DequantizedLinear):
    """A linear layer of small floats, dequantized whenever it computes."""

    storage_format = "floats"

    def __init__(self, stored: dict[str, Tensor], scheme: QuantizationScheme, bias: nn.Parameter | None) -> None:
        """Take the tensors ``stored`` as in the module's docstring; ``scheme`` is the configuration's group."""
        is_packed = "weight_packed" in stored
        rows, columns = stored["weight_packed" if is_packed else "weight"].shape
        super().__init__((rows, 2 * columns if is_packed else columns), stored, bias)
        self.scheme: QuantizationScheme = scheme

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        stored = self.stored()
        steps = small_floats.step_sizes(stored["weight_scale"], stored.get("weight_global_scale"))
        area = small_floats.area(steps, (self.out_features, self.in_features), self.scheme["weights"])

        def piece(rows: slice) -> Tensor:
            if "weight_packed" in stored:
                numbers = small_floats.unpack_e2m1(stored["weight_packed"][rows])
            else:
                numbers = stored["weight"][rows].float()
            return small_floats.multiplied(numbers, steps, area, rows.start)

        return self.by_rows(piece)


SCALE_TYPES = {
    "nvfp4-pack-quantized": "torch.float8_e4m3fn",
    "mxfp4-pack-quantized": "torch.uint8",
    "mxfp8-quantized": "torch.uint8",
}
"""compressed-tensors' name of a storage -> the type of its scales, where it is not the checkpoint's."""


def with_scale_types(quantization: QuantizationConfig) -> QuantizationConfig:
    """Return ``quantization`` with the types of scales that engines need to make room for them."""
    groups = {name: _with_scale_type(scheme) for name, scheme in quantization.get("config_groups", {}).items()}
    return {**quantization, "config_groups": groups} if groups else quantization


def _with_scale_type(scheme: QuantizationScheme) -> QuantizationScheme:
    scale_dtype = SCALE_TYPES.get(scheme.get("format", ""))
    if scale_dtype is None:
        return scheme
    return {**scheme, "weights": {**scheme["weights"], "scale_dtype": scale_dtype, "zp_dtype": None}}


def read(stored: dict[str, Tensor], scheme: QuantizationScheme | None) -> FloatLinear:
    """Return the layer that a checkpoint's tensors ``stored`` and its configuration describe."""
    if scheme is None:
        raise ValueError("floating-point weights without a group in config.json's quantization_config")
    return FloatLinear(stored, scheme, None)
