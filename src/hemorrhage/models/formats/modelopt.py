"""Weights as NVIDIA's ModelOpt stores them: FP8, and NVFP4 with ``weight_scale_2``.

- FP8: ``weight`` float8_e4m3fn [rows, columns], ``weight_scale`` float32, one number, or one for each row;
- NVFP4: ``weight`` uint8 [rows, columns / 2], two numbers of E2M1 a byte, ``weight_scale`` float8_e4m3fn [rows,
  groups], ``weight_scale_2`` float32, one number by which the scales are multiplied.

``input_scale`` says that inputs are rounded, to FP8 with that scale, or to NVFP4 with its inverse as global scale;
where a row of FP8 has a scale of its own, each token of the inputs has one, of no more than ``input_scale_ub`` (FBGEMM,
hemorrhage.models.formats.fbgemm). hf_quant_config.json, or config.json's
quantization_config with ``quant_method`` modelopt, names the algorithm; the tensors say the same and are what is read.
The dense weight is computed in float32, as ModelOpt's ``dequantize`` does for that dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.compressed import has_nan
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.settings import Entry, parse

TOTAL = "weight_scale_2"
"""The scale of an NVFP4 weight's scales, which no other format has under this name."""

MARKS = ("weight_scale", TOTAL)
"""Suffixes of a quantized layer's tensors."""

GROUP = 16

READ = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "MIXED_PRECISION")
"""Algorithms of ModelOpt that are read."""

UNREAD = (r"\.[kv]_proj\.[kv]_(scale|bias)$", r"self_attn\.[kqv]_scale$", r"\.output_scale$")
"""Names of tensors of keys and values, of which those that ``cache_scale`` names are emulated."""


class CacheScheme(Entry):
    """How keys and values are rounded."""

    num_bits: int = 8
    type: str = "float"


class Settings(Entry):
    """What is read of hf_quant_config.json's ``quantization``, or of config.json's ``quantization_config``."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    kv_cache_scheme: CacheScheme | str | None = None


class ModelOptLinear(DequantizedLinear):
    """A linear layer in one of ModelOpt's formats, dequantized whenever it computes."""

    storage_format = "modelopt"

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        """Take the tensors ``stored`` as in the module's docstring. Raises ValueError where they don't fit."""
        check(stored)
        rows, columns = stored["weight"].shape
        super().__init__((rows, 2 * columns if TOTAL in stored else columns), dict(stored), None)
        self.inputs = _inputs(stored)

    def dense(self) -> Tensor:
        """Return what ModelOpt dequantizes: float32 [rows, columns]."""
        stored = self.stored()
        scale = stored["weight_scale"].float()
        # [rows or 1, groups of columns]
        scale = scale * stored[TOTAL].reshape(()) if TOTAL in stored else scale.reshape(-1, 1)
        scale = scale.expand(self.out_features, -1)

        def piece(rows: slice) -> Tensor:
            weight = stored["weight"][rows]
            codes = small_floats.unpack_e2m1(weight) if TOTAL in stored else weight.float()
            groups: Tensor = codes.unflatten(1, (scale.shape[1], -1))
            return (groups * scale[rows].unsqueeze(2)).flatten(1)

        return self.by_rows(piece)


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> ModelOptLinear:
    """Return the layer that ``stored`` holds."""
    refuse(quantization)
    return ModelOptLinear(stored)


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the algorithm, and whether keys and values are rounded, in words."""
    refuse(quantization)
    settings = parse(Settings, quantization)
    words = f"ModelOpt {settings.quant_algo or 'of unnamed algorithm'}"
    scheme = settings.kv_cache_scheme
    in_words = f"{scheme.num_bits}-bit {scheme.type}" if isinstance(scheme, CacheScheme) else scheme
    cache = settings.kv_cache_quant_algo or in_words
    return f"{words}; keys and values in {cache}" if cache else words


def rounds_cache(quantization: Mapping[str, Any]) -> bool:
    """Return whether keys and values are rounded at run time."""
    settings = parse(Settings, quantization)
    return bool(settings.kv_cache_quant_algo or settings.kv_cache_scheme)


def cache_scale(quantization: Mapping[str, Any], layer: str, which: str) -> str | None:
    """Return the name of the scale of keys (``which`` k) or values (v) of an attention ``layer``; None for no FP8."""
    settings = parse(Settings, quantization)
    scheme = settings.kv_cache_scheme
    is_float = isinstance(scheme, CacheScheme) and (scheme.num_bits, scheme.type) == (8, "float")
    return f"{layer}.{which}_proj.{which}_scale" if is_float or settings.kv_cache_quant_algo == "FP8" else None


def refuse(quantization: Mapping[str, Any]) -> None:
    """Raise ValueError for an algorithm that is not read, by its name."""
    algorithm = parse(Settings, quantization).quant_algo
    if algorithm is not None and algorithm.upper() not in READ:
        raise ValueError(f"ModelOpt's {algorithm} is not read; {', '.join(READ)} are")


def check(stored: Mapping[str, Tensor]) -> None:
    """Raise ValueError where tensors are missing or surplus, or don't fit each other."""
    known = {"weight", "input_scale", "input_scale_ub", *MARKS}
    for surplus in sorted(set(stored) - known):
        raise ValueError(f"unexpected tensor {surplus}")
    for missing in sorted({"weight", "weight_scale"} - set(stored)):
        raise ValueError(f"{missing} is missing")
    weight, scale = stored["weight"], stored["weight_scale"]
    is_4_bits = TOTAL in stored
    expected = torch.uint8 if is_4_bits else torch.float8_e4m3fn
    if weight.dtype != expected or weight.dim() != 2 or not weight.numel():
        with_total = "with" if is_4_bits else "without"
        raise ValueError(
            f"weight of type {weight.dtype} and shape {list(weight.shape)} {with_total} {TOTAL} can't be read"
        )
    rows, columns = weight.shape
    if is_4_bits:
        fits = tuple(scale.shape) == (rows, 2 * columns // GROUP) and not 2 * columns % GROUP
        fits = fits and scale.dtype == torch.float8_e4m3fn
    else:
        fits = tuple(scale.shape) in ((), (1,), (rows,), (rows, 1)) and scale.dtype in small_floats.REAL
        if has_nan(weight):
            raise ValueError("weight has a NaN")
    if not fits:
        shapes = f"{list(scale.shape)} does not fit a weight of {list(weight.shape)}"
        raise ValueError(f"weight_scale of type {scale.dtype} and shape {shapes}")
    if not bool(scale.float().isfinite().all()):
        raise ValueError("weight_scale is not finite")
    for name in (TOTAL, "input_scale", "input_scale_ub"):
        if name in stored and not small_floats.is_scale(stored[name]):
            raise ValueError(f"{name} is not one finite number above 0")


def _inputs(stored: Mapping[str, Tensor]) -> QuantizationArgs | None:
    """Return how inputs are rounded, in the words of compressed-tensors."""
    rounded: QuantizationArgs = {"type": "float", "symmetric": True}
    if "input_scale" not in stored:
        is_by_row = TOTAL not in stored and stored["weight_scale"].numel() > 1
        return {**rounded, "num_bits": 8, "strategy": "token", "dynamic": True} if is_by_row else None
    if TOTAL not in stored:
        return {**rounded, "num_bits": 8, "strategy": "tensor", "dynamic": False}
    local: QuantizationArgs = {"strategy": "tensor_group", "group_size": GROUP, "dynamic": "local"}
    return {**rounded, **local, "num_bits": 4, "scale_dtype": "torch.float8_e4m3fn"}


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> ModelOptLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return ModelOptLinear(stored)
