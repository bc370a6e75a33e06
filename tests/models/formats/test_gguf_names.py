"""Families of models in GGUF's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hemorrhage.models.formats import gguf_names

OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""llama.cpp's names of a Llama's modules."""

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}

GEMMA: dict[str, Any] = {
    **CONFIG,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
}
"""A Gemma 2 but for its type."""


def rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows: rows i and i + d/2 of a head become 2i and 2i + 1."""
    size = len(weight) // heads
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return weight[order]


def test_rotary_order_is_undone_row_by_row() -> None:
    weight = torch.arange(4 * 6 * 3, dtype=torch.float32).view(24, 3)
    stored = torch.from_numpy(rotary_pairs(weight.numpy(), heads=4))
    assert not torch.equal(stored, weight)
    assert torch.equal(gguf_names.rotary_halves(stored, heads=4), weight)


def test_names_of_a_llama_are_llama_cpps_in_order() -> None:
    names = gguf_names.tensor_names(CONFIG)
    inside = {
        f"model.layers.{layer}.{new}.weight": f"blk.{layer}.{old}.weight"
        for layer in range(2)
        for new, old in BLOCK.items()
    }
    expected = {f"{new}.weight": f"{old}.weight" for new, old in OUTSIDE.items()} | inside
    assert list(names.items()) == list(expected.items())
    back = gguf_names.parameter_names("llama", 2)
    assert {back[old]: old for old in names.values()} == names


@pytest.mark.parametrize(
    ("model_type", "settings", "module", "name"),
    [
        ("llama", {"attention_bias": True}, "self_attn.o_proj.bias", "attn_output.bias"),
        ("llama", {"mlp_bias": True}, "mlp.down_proj.bias", "ffn_down.bias"),
        ("qwen2", {}, "self_attn.k_proj.bias", "attn_k.bias"),
        ("qwen3", {}, "self_attn.q_norm.weight", "attn_q_norm.weight"),
        ("gemma2", {}, "post_attention_layernorm.weight", "post_attention_norm.weight"),
        ("gemma2", {}, "pre_feedforward_layernorm.weight", "ffn_norm.weight"),
        ("gemma3_text", {}, "post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
        ("phi3", {}, "self_attn.qkv_proj.weight", "attn_qkv.weight"),
        ("phi3", {}, "mlp.gate_up_proj.weight", "ffn_up.weight"),
    ],
)
def test_names_of_other_families(model_type: str, settings: dict[str, Any], module: str, name: str) -> None:
    names = gguf_names.tensor_names({**CONFIG, "model_type": model_type, **settings})
    assert names[f"model.layers.1.{module}"] == f"blk.1.{name}"
    assert len(set(names.values())) == len(names)


def test_a_tied_head_has_no_tensor() -> None:
    assert "lm_head.weight" not in gguf_names.tensor_names({**CONFIG, "tie_word_embeddings": True})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CONFIG, None),
        ({**CONFIG, "attention_bias": True, "mlp_bias": True}, None),
        ({**CONFIG, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, None),
        ({**CONFIG, "rope_parameters": None, "rope_scaling": {"type": "linear"}, "rope_theta": 1e4}, None),
        ({**CONFIG, "model_type": "gpt2"}, "this model is a gpt2"),
        ({**CONFIG, "hidden_act": "gelu"}, "computed with silu; this model has gelu"),
        ({**CONFIG, "model_type": "qwen3", "attention_bias": True}, "this one has attention_bias"),
        ({**CONFIG, "rope_parameters": {"rope_type": "longrope"}}, "not longrope"),
        ({**CONFIG, "model_type": "qwen2", "rope_parameters": {"rope_type": "llama3"}}, "not llama3"),
        ({**CONFIG, "rope_parameters": {"rope_type": "yarn", "attention_factor": 1.2}}, "no attention_factor"),
        ({**CONFIG, "partial_rotary_factor": 0.5}, "this model rotates a part"),
        ({**CONFIG, "model_type": "mistral", "sliding_window": 8}, "without a sliding window; this model has one of 8"),
        ({**CONFIG, "model_type": "mistral", "sliding_window": 128}, None),
        ({**CONFIG, "model_type": "qwen2", "sliding_window": 8, "layer_types": ["full_attention"] * 2}, None),
        ({**GEMMA, "model_type": "gemma2"}, None),
        ({**GEMMA, "model_type": "gemma2", "layer_types": ["full_attention"] * 2}, "layer_types differ"),
        ({**GEMMA, "model_type": "gemma2", "final_logit_softcapping": None}, "this model lacks one"),
        ({**GEMMA, "model_type": "gemma2", "query_pre_attn_scalar": 20}, "scalar 16; this model's is 20"),
        ({**GEMMA, "model_type": "gemma2", "tie_word_embeddings": False}, "no head apart from the embedding"),
        ({**GEMMA, "model_type": "gemma3_text"}, "no attn_logit_softcapping"),
        ({**GEMMA, "model_type": "gemma3_text", "attn_logit_softcapping": None}, None),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: dict[str, Any], reason: str | None) -> None:
    given = gguf_names.problem(config)
    assert given is None if reason is None else reason in str(given)
