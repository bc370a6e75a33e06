"""Marks of a checkpoint whose weights are quantized already: settings, other files, names and types of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KEYS = ("quantization_config", "compression_config", "quantization", "quant_config", "quantize_config")
"""Keys of config.json or its text tower's entry: transformers, older llm-compressor, MLX, older AWQ and GPTQ."""

FILES = (
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quanto_qmap.json",
    "quant_model_description.json",
    "smash_config.json",
)
"""AutoGPTQ, AutoAWQ, ModelOpt, quanto, msModelSlim, Pruna."""

ENDS = (
    "qweight",
    "qzeros",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
    "SCB",
    "absmax",
    "quant_map",
    "W_q",
    "weight_quantized",
    "weight_bitmask",
    "trellis",
    "svh",
    "codebooks",
)
"""Suffixes of a quantized tensor's name, after a layer's: GPTQ and AWQ, compressed-tensors, ModelOpt, FP8,
bitsandbytes, HQQ, EXL3, AQLM."""

DOTTED = (".weight._data", ".weight._scale")
"""Of quanto."""

BLOCKS = ("_proj_blocks", "_proj_scales")
"""How MXFP4's names end, of gpt-oss's experts."""

WHOLE = ("F64", "F32", "F16", "BF16")
"""safetensors' types that a weight has before it is quantized."""


def marker(config: Mapping[str, Any], files: Iterable[str], tensors: dict[str, str]) -> str | None:
    """Return a sentence on what marks a folder as quantized, or None; ``tensors``: type by name."""
    for entries in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in KEYS:
            if entries.get(key) is not None:
                return f"config.json has {key}"
    for name in files:
        if name in FILES:
            return f"it has {name}"
    for name, dtype in tensors.items():
        layer, _, end = name.rpartition(".")
        if layer and (end in ENDS or end.endswith(BLOCKS) or name.endswith(DOTTED)):
            return f"it has a tensor {name}"
        if dtype not in WHOLE and (end == "weight" or dtype.startswith("F")):
            return f"{name} is of type {dtype}"
    return None
