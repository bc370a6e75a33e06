"""Which programs can use a checkpoint as it lies on disk."""

from __future__ import annotations

from typing import Any

STORED: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "int8": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "codebook": {"quantization_config": {"quant_method": "bitsandbytes"}, "hemorrhage": {"forms": ["codebook"]}},
    "gguf_file": {"hemorrhage": {"form": "gguf_file"}},
    "rotated": {"hemorrhage": {"forms": ["rotated"]}},
    "affine": {"hemorrhage": {"forms": ["affine"]}},
    "low_rank": {"hemorrhage": {"forms": ["low_rank"]}},
    "sliced": {"hemorrhage": {"form": "sliced"}},
    "pruned_width": {"hemorrhage": {"narrow": {"layer": [1, 1]}}},
    "kv_cache": {"hemorrhage": {"kv_cache": {"bits": 4}}},
}
"""How a method's result can be stored -> what of its config.json says so. A test holds it to real checkpoints."""


def engine(settings: dict[str, Any]) -> tuple[str, str]:
    """Return the programs that load a checkpoint with this config.json, and, where there are none, why.

    Speed is another question: it takes kernels for the format.
    """
    bench = settings.get("hemorrhage") or {}
    scheme = settings.get("quantization_config") or {}
    form = bench.get("form")
    if form == "gguf_file":
        return "llama.cpp", ""
    if form is not None:
        return "", f"its form ({form}) is another architecture"
    own = [name for name in bench.get("forms", ()) if name != "codebook"]
    if own:
        return "", f"its weights are in a form of this bench ({', '.join(own)})"
    if bench.get("narrow"):
        return "", f"{len(bench['narrow'])} weights are narrower than config.json can say for a single layer"
    if bench.get("kv_cache") or scheme.get("kv_cache_scheme"):
        return "", "keys and values are rounded by this bench while it runs"
    if scheme.get("quant_method") == "compressed-tensors":
        return "vLLM, transformers", ""
    if scheme:
        return "transformers with bitsandbytes", ""
    return "any Hugging Face program", ""
