"""Programs that can use a checkpoint as it lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hemorrhage.models.formats.config import BenchStorage

STORED: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "packed": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "int8": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "floats": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "codebook": {"quantization_config": {"quant_method": "bitsandbytes"}, "hemorrhage": {"forms": ["codebook"]}},
    "gguf_file": {"hemorrhage": {"form": "gguf_file"}},
    "rotated": {"hemorrhage": {"forms": ["rotated"]}},
    "affine": {"hemorrhage": {"forms": ["affine"]}},
    "low_rank": {"hemorrhage": {"forms": ["low_rank"]}},
    "sliced": {"hemorrhage": {"form": "sliced"}},
    "pruned_width": {"hemorrhage": {"narrow": {"layer": [1, 1]}}},
    "kv_cache": {"hemorrhage": {"kv_cache": {"bits": 4}}},
}
"""How a method's result can be stored -> the entries of its config.json that say so. A test holds it to checkpoints."""


PUBLISHED = {
    "compressed-tensors": "vLLM, transformers",
    "gptq": "transformers with GPTQModel",
    "awq": "transformers with GPTQModel",
    "auto-round": "transformers with AutoRound",
    "fp8": "vLLM, transformers on a GPU",
    "fbgemm_fp8": "transformers on a GPU",
    "mxfp4": "vLLM, transformers",
    "hqq": "transformers with HQQ",
    "torchao": "transformers with torchao",
    "modelopt": "TensorRT-LLM, vLLM",
    "mlx": "MLX",
}
"""``quant_method`` of config.json -> programs that load such a checkpoint."""


def engine(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the programs that load a checkpoint with this config.json, and, where there are none, why.

    Speed is another question: it takes kernels for the format.
    """
    storage = BenchStorage.of(config)
    quantization = config.get("quantization_config") or {}
    if storage.model_format == "gguf_file":
        return "llama.cpp", ""
    obstacle = _obstacle(storage, has_rounded_cache=bool(quantization.get("kv_cache_scheme")))
    if obstacle:
        return "", obstacle
    method = quantization.get("quant_method")
    if method in PUBLISHED:
        return PUBLISHED[method], ""
    return "transformers with bitsandbytes" if quantization else "any Hugging Face program", ""


def _obstacle(storage: BenchStorage, has_rounded_cache: bool) -> str:
    """Return why no engine loads a checkpoint; empty where one does."""
    if storage.model_format is not None:
        return f"its storage format ({storage.model_format}) is another architecture"
    built_in = [name for name in storage.layer_formats if name != "codebook"]
    if built_in:
        return f"its weights are in a storage format of this bench ({', '.join(built_in)})"
    if storage.pruned_width:
        return f"{len(storage.pruned_width)} weights are narrower than config.json can say for a single layer"
    if storage.kv_cache or has_rounded_cache:
        return "keys and values are rounded by this bench while it runs"
    return ""
