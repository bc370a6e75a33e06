"""FP8 of FBGEMM, as transformers stores it: a scale for each row of the weight, and for each token of the inputs.

``weight`` float8_e4m3fn [rows, columns], ``weight_scale`` float32 [rows, 1]. Of inputs, what is larger than
``activation_scale_ub`` of quantization_config is cut to it. The layer is one of hemorrhage.models.formats.modelopt,
whose FP8 by rows is the same. Llama 4's stacked experts are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.modelopt import ModelOptLinear
from hemorrhage.models.formats.settings import Entry, parse

MARKS = ("weight_scale",)
"""Suffixes of a quantized layer's tensors."""

LIMIT = "input_scale_ub"


class Settings(Entry):
    """What is read of config.json's ``quantization_config``."""

    activation_scale_ub: float = 1200.0


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> ModelOptLinear:
    """Return the layer that ``stored`` holds; its dense weight is computed in float32, as FBGEMM's kernel does."""
    scale = stored.get("weight_scale")
    if scale is None or scale.dim() != 2 or scale.shape[1] != 1:
        raise ValueError(f"weight_scale {None if scale is None else list(scale.shape)} is not one for each row")
    tensors = {suffix: value for suffix, value in stored.items() if suffix != LIMIT}
    return ModelOptLinear({**tensors, LIMIT: torch.tensor(_limit(quantization))})


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    return f"FBGEMM FP8 per row, inputs FP8 per token up to {_limit(quantization):g}"


def _limit(quantization: Mapping[str, Any]) -> float:
    return parse(Settings, quantization).activation_scale_ub
