"""Reading the layers of a checkpoint that have a storage format."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from hemorrhage.models.formats.config import CACHE_SCALES, QuantizationConfig, QuantizationScheme
from hemorrhage.models.formats.storage import FormattedLinear, scheme_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


FORMAT_OF_SUFFIX = {
    "weight_scale_2": "modelopt",
    "weight_scale_inv": "fp8",
    "mx_blocks": "mxfp4",
    "weight_packed": "packed",
    "weight.quant_state.bitsandbytes__nf4": "codebook",
    "weight.quant_state.bitsandbytes__fp4": "codebook",
    "rotated_packed": "rotated",
    "affine_packed": "affine",
    "low_rank_in": "low_rank",
    "outlier_codes": "int8_outliers",
    "weight_scale": "int8",
    "gptq_qweight": "gptq",
    "awq_qweight": "awq",
    "SCB": "llm_int8",
    "W_q": "hqq",
    "mlx_weight": "mlx",
    "torchao_qdata": "torchao",
    "lora_A": "lora",
}
"""Suffix on disk -> storage format. The first that a layer has decides."""

MODULES = {
    "packed": "hemorrhage.models.formats.packed",
    "codebook": "hemorrhage.models.formats.codebook",
    "rotated": "hemorrhage.models.formats.rotated",
    "affine": "hemorrhage.models.formats.affine",
    "low_rank": "hemorrhage.models.formats.low_rank",
    "int8": "hemorrhage.models.formats.int8",
    "int8_outliers": "hemorrhage.models.formats.int8_outliers",
    "floats": "hemorrhage.models.formats.floats",
    "gptq": "hemorrhage.models.formats.gptq",
    "awq": "hemorrhage.models.formats.awq",
    "llm_int8": "hemorrhage.models.formats.bitsandbytes",
    "hqq": "hemorrhage.models.formats.hqq",
    "mlx": "hemorrhage.models.formats.mlx",
    "torchao": "hemorrhage.models.formats.torchao",
    "lora": "hemorrhage.models.formats.lora",
    "sliced": "hemorrhage.models.formats.sliced",
    "compressed": "hemorrhage.models.formats.compressed",
    "fp8": "hemorrhage.models.formats.fp8",
    "modelopt": "hemorrhage.models.formats.modelopt",
    "mxfp4": "hemorrhage.models.formats.mxfp4",
    "gguf_file": "hemorrhage.models.formats.gguf_file",
}
"""Storage format, of a layer or of a whole model, as checkpoints name it -> its module. Names on disk stay."""


def module_of(storage_format: str) -> ModuleType:
    """Return the module of a storage format, imported by name: a program depends on the formats that it meets."""
    return importlib.import_module(MODULES[storage_format])


def read(
    tensors: dict[str, Tensor], quantization: QuantizationConfig | None
) -> tuple[dict[str, Tensor], dict[str, FormattedLinear]]:
    """Return the plain tensors of a checkpoint, and ``{name: layer}`` of those that have a storage format.

    ``quantization`` is config.json's ``quantization_config``. Scales of a cache are no tensors of the model's own.
    """
    rounds_cache = bool((quantization or {}).get("kv_cache_scheme"))
    scales = tuple(f".{name}" for name in CACHE_SCALES)
    plain = {name: value for name, value in tensors.items() if not (rounds_cache and name.endswith(scales))}
    layers: dict[str, FormattedLinear] = {}
    for suffix, storage_format in FORMAT_OF_SUFFIX.items():
        for key in [key for key in plain if key.endswith(f".{suffix}")]:
            name = key.removesuffix(f".{suffix}")
            names = [other for other in plain if other.startswith(f"{name}.") and other != f"{name}.bias"]
            stored = {other.removeprefix(f"{name}."): plain.pop(other) for other in names}
            scheme = scheme_of(name, quantization)
            layer: FormattedLinear = module_of(_actual(storage_format, scheme, stored)).read(stored, scheme)
            bias = plain.get(f"{name}.bias")
            layer.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
            layers[name] = layer
    return plain, layers


def _actual(storage_format: str, scheme: QuantizationScheme | None, stored: Mapping[str, Tensor]) -> str:
    """Return the format of a layer whose suffix says ``storage_format``: others have the bench's suffixes, too."""
    weights = (scheme or {}).get("weights", {})
    if storage_format in ("packed", "int8") and "scale_dtype" in weights:
        return "compressed"
    if storage_format in ("packed", "int8") and weights.get("type") == "float":
        return "floats"
    # ModelOpt's FP8, which no group describes.
    weight = stored.get("weight")
    is_float = weight is not None and weight.dtype == torch.float8_e4m3fn and scheme is None
    return "modelopt" if storage_format == "int8" and is_float else storage_format
