"""How a checkpoint says that its weights are quantized already: settings, files beside, names and types of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

KEYS = ("quantization_config", "compression_config", "quantization", "quant_config", "quantize_config")
"""Of config.json, of a text tower's part in it too: transformers, older llm-compressor, MLX, older AWQ and GPTQ."""

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
"""Last parts of a quantized tensor's name, behind a layer's: GPTQ and AWQ, compressed-tensors, ModelOpt, FP8,
bitsandbytes, HQQ, EXL3, AQLM."""

DOTTED = (".weight._data", ".weight._scale")
"""Of quanto."""

BLOCKS = ("_proj_blocks", "_proj_scales")
"""How MXFP4's names end, of gpt-oss's experts."""

WHOLE = ("F64", "F32", "F16", "BF16")
"""safetensors' types that a weight has before it is quantized."""


def marker(config: dict[str, Any], files: Iterable[str], tensors: dict[str, str]) -> str | None:
    """Return what says that a folder is quantized, or None; ``tensors``: type by name."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in KEYS:
            if part.get(key) is not None:
                return f"config.json has {key}"
    for name in files:
        if name in FILES:
            return f"{name} lies there"
    for name, kind in tensors.items():
        layer, _, end = name.rpartition(".")
        if layer and (end in ENDS or end.endswith(BLOCKS) or name.endswith(DOTTED)):
            return f"a tensor is called {name}"
        if kind not in WHOLE and (end == "weight" or kind.startswith("F")):
            return f"{name} is of type {kind}"
    return None
