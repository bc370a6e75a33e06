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
    inside = {
        f"model.layers.{layer}.{new}.weight": f"blk.{layer}.{old}.weight"
        for layer in range(2)
        for new, old in BLOCK.items()
    }
    outside = {f"{new}.weight": f"{old}.weight" for new, old in OUTSIDE.items()}
    names = gguf_names.file_names(CONFIG, [*inside, *outside])
    assert list(names.items()) == [(old, (new,)) for new, old in (outside | inside).items()]
    back = gguf_names.parameter_names("llama", 2)
    assert {old: back[old] for old in names} == {old: new for new, old in (outside | inside).items()}


@pytest.mark.parametrize(
    ("model_type", "parameter", "name"),
    [
        ("llama", "model.layers.1.self_attn.o_proj.bias", "blk.1.attn_output.bias"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight", "blk.1.attn_q_norm.weight"),
        ("gemma2", "model.layers.1.post_attention_layernorm.weight", "blk.1.post_attention_norm.weight"),
        ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight", "blk.1.ffn_norm.weight"),
        ("gemma3_text", "model.layers.1.post_feedforward_layernorm.weight", "blk.1.post_ffw_norm.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight", "blk.1.ffn_up.weight"),
        ("phi", "lm_head.bias", "output.bias"),
        ("gpt2", "transformer.h.1.attn.c_attn.bias", "blk.1.attn_qkv.bias"),
        ("gpt2", "transformer.wpe.weight", "position_embd.weight"),
        ("bloom", "transformer.word_embeddings_layernorm.bias", "token_embd_norm.bias"),
        ("falcon", "transformer.h.1.ln_attn.weight", "blk.1.attn_norm_2.weight"),
        ("gpt_oss", "model.layers.1.self_attn.sinks", "blk.1.attn_sinks.weight"),
        ("granitemoe", "model.layers.1.block_sparse_moe.router.weight", "blk.1.ffn_gate_inp.weight"),
        ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias", "blk.1.exp_probs_b.bias"),
        ("ernie4_5_moe", "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias", "blk.1.exp_probs_b.bias"),
    ],
)
def test_names_of_other_families(model_type: str, parameter: str, name: str) -> None:
    config = {**CONFIG, "model_type": model_type}
    assert gguf_names.file_names(config, [parameter]) == {name: (parameter,)}


@pytest.mark.parametrize(
    ("model_type", "pattern", "name"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.{}.w3.weight", "blk.0.ffn_up_exps.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.{}.down_proj.weight", "blk.0.ffn_down_exps.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.{}.gate_proj.bias", "blk.0.ffn_gate_exps.bias"),
        ("granitemoe", "model.layers.0.block_sparse_moe.experts.{}.up_proj.weight", "blk.0.ffn_up_exps.weight"),
        ("stablelm", "model.layers.0.self_attn.q_layernorm.norms.{}.weight", "blk.0.attn_q_norm.weight"),
    ],
)
def test_parts_of_one_tensor_are_in_the_order_of_their_numbers(model_type: str, pattern: str, name: str) -> None:
    parts = [pattern.format(number) for number in range(12)]
    assert gguf_names.file_names({**CONFIG, "model_type": model_type}, sorted(parts)) == {name: tuple(parts)}


def test_a_parameter_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gguf has no name for model\.layers\.0\.extra\.weight of llama files"):
        gguf_names.file_names(CONFIG, ["model.layers.0.extra.weight"])


def test_a_tied_head_has_no_tensor() -> None:
    assert gguf_names.file_names({**CONFIG, "tie_word_embeddings": True}, ["lm_head.weight"]) == {}


def test_rows_of_fused_projections_are_queries_then_keys_then_values() -> None:
    heads = gguf_names.row_order("h.0.query_key_value.weight", {**CONFIG, "model_type": "bloom", "hidden_size": 8})
    assert heads is not None
    assert heads.tolist() == [0, 1, 6, 7, 12, 13, 18, 19, 2, 3, 8, 9, 14, 15, 20, 21, 4, 5, 10, 11, 16, 17, 22, 23]
    falcon = {**CONFIG, "model_type": "falcon", "hidden_size": 4, "num_kv_heads": 2, "new_decoder_architecture": True}
    groups = gguf_names.row_order("h.0.self_attention.query_key_value.weight", falcon)
    assert groups is not None
    assert groups.tolist() == [0, 1, 4, 5, 2, 6, 3, 7]
    assert gguf_names.row_order("h.0.self_attention.dense.weight", falcon) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CONFIG, None),
        ({**CONFIG, "attention_bias": True, "mlp_bias": True}, None),
        ({**CONFIG, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, None),
        ({**CONFIG, "rope_parameters": None, "rope_scaling": {"type": "linear"}, "rope_theta": 1e4}, None),
        ({**CONFIG, "model_type": "opt"}, "this model is a opt"),
        ({**CONFIG, "model_type": "qwen2_moe", "mlp_only_layers": [0]}, "mlp_only_layers []; this model has [0]"),
        ({**CONFIG, "model_type": "qwen2_moe", "norm_topk_prob": True}, "norm_topk_prob False; this model has True"),
        ({**CONFIG, "model_type": "qwen2", "head_dim": 24}, "heads of hidden_size over their number"),
        ({**CONFIG, "model_type": "olmoe"}, "have 4 keys for 4 queries, not 2"),
        ({**CONFIG, "model_type": "nemotron", "hidden_act": "relu2", "tie_word_embeddings": True}, "are tied"),
        ({**CONFIG, "model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers differ"),
        ({**CONFIG, "model_type": "smollm3", "no_rope_layers": [1, 1]}, None),
        ({**CONFIG, "model_type": "glm4", "head_dim": 20, "partial_rotary_factor": 0.25}, "rotates 5 numbers"),
        ({**CONFIG, "model_type": "exaone4", "sliding_window": 4096}, "sliding_window None; this model has 4096"),
        ({**CONFIG, "model_type": "gpt_oss", "rope_parameters": {"rope_type": "yarn", "truncate": False}}, "truncate"),
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
