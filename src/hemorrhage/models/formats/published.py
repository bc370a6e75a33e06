"""Which module reads a quantized checkpoint that somebody else published.

A reader's module has ``MARKS``, ``describe(quantization)`` and ``read_published(stored, quantization, layer)``;
hemorrhage.models.published calls it for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

READERS: Mapping[str, str] = {
    "auto-round": "hemorrhage.models.formats.auto_round",
    "awq": "hemorrhage.models.formats.awq",
    "bitsandbytes": "hemorrhage.models.formats.bitsandbytes",
    "compressed-tensors": "hemorrhage.models.formats.compressed_tensors",
    "fbgemm_fp8": "hemorrhage.models.formats.fbgemm",
    "fp8": "hemorrhage.models.formats.fp8",
    "gptq": "hemorrhage.models.formats.gptq",
    "hqq": "hemorrhage.models.formats.hqq",
    "mlx": "hemorrhage.models.formats.mlx",
    "modelopt": "hemorrhage.models.formats.modelopt",
    "modelopt_fp4": "hemorrhage.models.formats.modelopt",
    "mxfp4": "hemorrhage.models.formats.mxfp4",
    "torchao": "hemorrhage.models.formats.torchao",
}
"""``quant_method`` of config.json, in lower case -> module of this package."""
