"""What a GGUF file says of its model."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.models.formats import gguf_metadata
from tests.models.formats.test_gguf_names import CONFIG

ALL: dict[str, Any] = {**CONFIG, "vocab_size": 512, "intermediate_size": 112, "rms_norm_eps": 1e-6}


def described(model_type: str, **settings: Any) -> dict[str, Any]:
    return dict(gguf_metadata.describe({**ALL, "model_type": model_type, **settings}))


def test_a_llamas_entries_are_those_that_llama_cpp_reads() -> None:
    assert described("llama") == {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 112,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": 512,
        "rope.dimension_count": 16,
        "rope.freq_base": 1e4,
    }


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, {"expert_count": 8, "expert_used_count": 2}),
        ("qwen3_moe", {"num_experts": 8, "moe_intermediate_size": 48}, {"expert_feed_forward_length": 48}),
        ("stablelm", {"layer_norm_eps": 1e-5, "use_parallel_residual": True}, {"use_parallel_residual": True}),
        ("cohere", {"layer_norm_eps": 1e-5, "logit_scale": 0.25}, {"logit_scale": 0.25}),
        ("olmo", {"clip_qkv": 8}, {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 8.0}),
        (
            "dots1",
            {"n_routed_experts": 4, "norm_topk_prob": True},
            {"expert_gating_func": 2, "expert_weights_norm": True},
        ),
        ("gpt2", {"layer_norm_epsilon": 1e-5, "n_inner": None}, {"feed_forward_length": 256}),
        ("bloom", {"layer_norm_epsilon": 1e-5}, {"context_length": 2048, "attention.head_count_kv": 4}),
        ("falcon", {"layer_norm_epsilon": 1e-5, "multi_query": True}, {"attention.head_count_kv": 1}),
        (
            "mpt",
            {"layer_norm_epsilon": 1e-5, "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 6}},
            {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 6.0},
        ),
        (
            "ernie4_5_moe",
            {"moe_intermediate_size": 48, "moe_num_shared_experts": 2},
            {"expert_shared_feed_forward_length": 96},
        ),
    ],
)
def test_entries_of_other_families(model_type: str, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    entries = described(model_type, **settings)
    assert {key: entries[key] for key in expected} == expected


def test_models_without_rotary_embeddings_say_nothing_of_them() -> None:
    assert not [key for key in described("gpt2", layer_norm_epsilon=1e-5) if key.startswith("rope")]
