"""Llama in GGUF's words: the names of its tensors, the order of its rotary rows, and which models can be written so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""GGUF tensor names -> Hugging Face module names."""


def hugging_face_name(name: str) -> str:
    """Return the name of a GGUF tensor of a Llama in Hugging Face's Llama: ``blk.3.attn_q.weight`` and so on."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    _, layer, module = stem.split(".")
    return f"model.layers.{layer}.{LAYER[module]}.weight"


def rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection ``[heads * d, n]``, from rotary pairs (GGUF) to halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def problem(config: Mapping[str, Any]) -> str | None:
    """Return why a model with this config.json can't be written as a GGUF file here, or None."""
    if config["model_type"] != "llama":
        return f"GGUF files are written for llama models only; this model is a {config['model_type']}"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            return f"GGUF files are written for llama models without biases; this one has {key}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type != "default":
        return f"GGUF files are written for plain rotary embeddings only; this model's are {rope_type}"
    return None
