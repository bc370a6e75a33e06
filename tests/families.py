"""Small models of every family that people compress: random weights in bfloat16, of sizes that hide nothing.

    python -m tests.families OUT [NAME...]

Hidden size 80, whose root is not exact in 16 bits; heads wider than hidden size over heads, and one key-value head,
where the family allows both; biases and norm weights that are neither zero nor one; layers of several kinds. A model
and its tokenizer are written in milliseconds, and are the same at every call.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from hemorrhage.data.texts import embedded
from hemorrhage.models.architecture import architecture
from tests.tiny_model import CONTEXT, SEED, VOCABULARY, save_tokenizer, train_tokenizer

BASIC: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

COMMON: dict[str, Any] = {
    **BASIC,
    "hidden_size": 80,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}

TIED = {"tie_word_embeddings": True}
WIDE = {"head_dim": 24}
BIASED = {"attention_bias": True}
FULL_HEADS = {"num_key_value_heads": 4}

MLA: dict[str, Any] = {
    **FULL_HEADS,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}

DEEPSEEK: dict[str, Any] = {
    **MLA,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}

LINEAR_ATTENTION: dict[str, Any] = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}

MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 10,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}

SLIDING = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

GPT2_LIKE: dict[str, Any] = {**BASIC, "n_embd": 80, "n_layer": 4, "n_head": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    # Decoders like Llama's.
    "llama": {**COMMON, **WIDE, **BIASED, "mlp_bias": True},
    "llama-tied": {**COMMON, **TIED, "model_type": "llama"},
    "mistral": {**COMMON, **WIDE, "sliding_window": 8},
    "ministral": {**COMMON, **WIDE, **SLIDING},
    "qwen2": {**COMMON, **TIED},
    "qwen3": {**COMMON, **WIDE, **TIED},
    "smollm3": {**COMMON, "no_rope_layers": [1, 0, 1, 1], **TIED},
    "olmo": {**COMMON, "clip_qkv": 1.0},
    "olmo2": {**COMMON},
    "olmo3": {**COMMON, **SLIDING},
    "glm": {**COMMON, **WIDE},
    "glm4": {**COMMON, **WIDE},
    "helium": {**COMMON, "head_dim": 20},
    "arcee": {**COMMON, **WIDE},
    "apertus": {**COMMON},
    "nanochat": {**COMMON},
    "exaone4": {**COMMON, "sliding_window": 8, "sliding_window_pattern": 2},
    "seed_oss": {**COMMON, **WIDE, "attention_out_bias": True, "mlp_bias": True},
    "ernie4_5": {**COMMON, **WIDE, "use_bias": True, **TIED},
    "hunyuan_v1_dense": {**COMMON, **WIDE},
    "cwm": {**COMMON, **WIDE, **SLIDING},
    "diffllama": {**COMMON, "num_key_value_heads": 2},
    "minicpm3": {**COMMON, **MLA, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 40, **TIED},
    "granite": {
        **COMMON, **TIED, "residual_multiplier": 0.3, "logits_scaling": 4.0, "embedding_multiplier": 6.0,
        "attention_multiplier": 0.1,
    },
    # Fused projections.
    "phi3": {**COMMON},
    # Layer norms.
    "opt": {
        **BASIC, "hidden_size": 80, "ffn_dim": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 80,
    },
    "opt-projected": {
        **BASIC, "model_type": "opt", "hidden_size": 80, "ffn_dim": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 48,
        "do_layer_norm_before": False,
    },
    "gpt_neox": {**COMMON},
    "phi": {**COMMON},
    "stablelm": {**COMMON, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "starcoder2": {**COMMON, "use_bias": True, **TIED},
    "nemotron": {**COMMON, **WIDE},
    "gptj": {**GPT2_LIKE, "n_positions": CONTEXT, "rotary_dim": 8},
    "gpt_bigcode": {**GPT2_LIKE, "n_positions": CONTEXT},
    "gpt2": {**GPT2_LIKE, "n_positions": CONTEXT},
    "gpt_neo": {
        **BASIC, "hidden_size": 80, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
        "window_size": 8, "max_position_embeddings": CONTEXT, "intermediate_size": 112,
    },
    "codegen": {**GPT2_LIKE, "n_positions": CONTEXT, "rotary_dim": 8},
    "bloom": {**BASIC, "hidden_size": 80, "n_layer": 4, "n_head": 4},
    "falcon": {**COMMON, "new_decoder_architecture": False, "multi_query": True, "bias": True, **TIED},
    "falcon-new": {
        **COMMON, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, **TIED,
    },
    "mpt": {**BASIC, "d_model": 80, "n_layers": 4, "n_heads": 4, "max_seq_len": CONTEXT, "expansion_ratio": 2},
    "persimmon": {**COMMON},
    "biogpt": {**COMMON},
    "xglm": {**BASIC, "d_model": 80, "ffn_dim": 112, "num_layers": 4, "attention_heads": 4},
    "cohere": {**COMMON, "logit_scale": 0.25, **TIED, "use_qk_norm": True},
    "cohere2": {**COMMON, "logit_scale": 0.25, **TIED, **SLIDING},
    # Gemma.
    "gemma": {**COMMON, **WIDE, **TIED},
    "gemma2": {**COMMON, **WIDE, **TIED, **SLIDING, "query_pre_attn_scalar": 24, "final_logit_softcapping": 3.0},
    "gemma3_text": {**COMMON, **WIDE, **TIED, **SLIDING, "query_pre_attn_scalar": 24},
    "recurrent_gemma": {
        **COMMON, **TIED, "num_attention_heads": 4, "lru_width": 80, "attention_window_size": 8,
        "block_types": ["recurrent", "recurrent", "attention"], "logits_soft_cap": 3.0, "intermediate_size": 224,
    },
    # Mixtures of experts.
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "qwen2_moe": {
        **COMMON, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32, "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        **COMMON, **WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
    "olmoe": {**COMMON, "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "granitemoe": {
        **COMMON, **TIED, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48,
        "logits_scaling": 4.0, "residual_multiplier": 0.3, "embedding_multiplier": 6.0,
    },
    "phimoe": {
        **COMMON, **BIASED, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48,
        "lm_head_bias": True, "input_jitter_noise": 0.01,
    },
    "llama4_text": {
        **COMMON, **WIDE, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 48,
        "intermediate_size_mlp": 112, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1, 1, 0],
        "attention_chunk_size": 32,
    },
    "gpt_oss": {
        **COMMON, **WIDE, **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48,
    },
    "deepseek_v2": {**COMMON, **DEEPSEEK, "topk_method": "group_limited_greedy"},
    # The default, 2.5, would make the mean of 8 bits that of the few tokens whose experts change.
    "deepseek_v3": {**COMMON, **DEEPSEEK, "routed_scaling_factor": 0.5},
    "glm4_moe": {
        **COMMON, **WIDE, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48, "first_k_dense_replace": 1, "use_qk_norm": True, **BIASED,
    },
    "ernie4_5_moe": {
        **COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1, "moe_layer_end_index": 3, **TIED,
    },
    "hunyuan_v1_moe": {**COMMON, **WIDE, "num_experts": 4, "moe_topk": 2, "intermediate_size": 48},
    "dots1": {
        **COMMON, **WIDE, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    # State-space models and hybrids.
    "mamba": {
        **BASIC, "hidden_size": 80, "state_size": 8, "num_hidden_layers": 4, "time_step_rank": 5, **TIED,
    },
    "mamba2": {
        **BASIC, "hidden_size": 80, "state_size": 16, "num_hidden_layers": 4, "num_heads": 10, "head_dim": 16,
        "n_groups": 2, "chunk_size": 16,
    },
    "falcon_mamba": {
        **BASIC, "hidden_size": 80, "state_size": 8, "num_hidden_layers": 4, "time_step_rank": 5,
    },
    "jamba": {
        **COMMON, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 4, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 5,
        "use_mamba_kernels": False,
    },
    "bamba": {**COMMON, **MAMBA2, "attn_layer_indices": [1, 3]},
    "zamba2": {
        **COMMON, **FULL_HEADS, **TIED, "mamba_d_state": 16, "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 16,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1, "adapter_rank": 8,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {
        **COMMON, **MAMBA2, "mamba_d_ssm": 160, "lm_head_multiplier": 0.5, "embedding_multiplier": 3.0,
        "key_multiplier": 0.5, "ssm_in_multiplier": 0.7, "mlp_multipliers": [0.8, 0.6],
        "ssm_multipliers": [0.9, 0.8, 0.7, 0.6, 0.5], "attention_out_multiplier": 0.9,
    },
    "granitemoehybrid": {
        **COMMON, **MAMBA2, **TIED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48,
        "intermediate_size": 48, "layer_types": ["mamba", "attention", "mamba", "attention"], "logits_scaling": 4.0,
        "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "position_embedding_type": "rope",
    },
    "lfm2": {
        **COMMON, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 16,
    },
    "qwen3_next": {
        **COMMON, **WIDE, **LINEAR_ATTENTION, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5_text": {**COMMON, **WIDE, **LINEAR_ATTENTION},
    # Wrappers of a text tower.
    "gemma3": {
        "text_config": {**COMMON, **WIDE, **TIED, **SLIDING, "query_pre_attn_scalar": 24},
        "vision_config": VISION, "mm_tokens_per_image": 1, "image_token_index": 511, "boi_token_index": 509,
        "eoi_token_index": 510,
    },
    "llava": {
        "text_config": {**COMMON, **WIDE, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"}, "image_token_index": 511,
    },
    "qwen2_5_vl": {
        "text_config": {
            **COMMON, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 4, 4], "rope_theta": 1e4},
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 2, "out_hidden_size": 80,
        },
        "image_token_id": 511, "video_token_id": 510, "vision_start_token_id": 509, "vision_end_token_id": 508,
    },
    "mistral3": {
        "text_config": {**COMMON, **WIDE, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16}, "image_token_index": 511,
    },
}  # fmt: skip
"""Name -> entries of config.json; ``model_type`` is the name where it is not among them."""

PALIGEMMA: dict[str, Any] = {
    "text_config": {**COMMON, **WIDE, **TIED, "model_type": "gemma"}, **TIED, "hidden_size": 80,
    "vision_config": {**VISION, "model_type": "siglip_vision_model", "projection_dim": 80}, "projection_dim": 80,
    "image_token_index": 511,
}  # fmt: skip
"""A wrapper whose text tower sees the tokens after a token, too, so that the base step refuses it."""


def config_of(name: str, **changes: Any) -> Any:
    """The configuration of a family's small model, with ``changes``."""
    entries = {**FAMILIES[name], **changes}
    return AutoConfig.for_model(entries.pop("model_type", name), **entries)


def new_model(name: str, **changes: Any) -> PreTrainedModel:
    """The model of a family in bfloat16, the same at every call; ``changes`` of its configuration."""
    config = config_of(name, **changes)
    # transformers initialises from the global generator and takes no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = architecture(config)._from_config(config)
        fill(model)
    made: PreTrainedModel = model.to(torch.bfloat16).eval()
    return made


@torch.no_grad()
def fill(model: PreTrainedModel) -> None:
    """Draw every weight, so that none has the value that a fault would leave unnoticed.

    Routers are sure of themselves, and recurrent layers do not outweigh the embedding that they write to: what hangs on
    a hair's breadth is no matter of 8 bits.
    """
    tied, recurrent = model.all_tied_weights_keys, any("conv" in name for name, _ in model.named_parameters())
    embedding = model.get_input_embeddings().weight
    for name, value in model.named_parameters():
        if value.dim() > 1:
            routes = ".router" in name or name.endswith(("mlp.gate.weight", "gate.wg.weight"))
            spread = 0.6 if routes else 0.3 if "conv" in name else 0.08
            if value is embedding and recurrent and not tied:
                spread = 0.6
            value.normal_(0, spread) if "A_log" not in name else None
        elif name.rpartition(".")[2] in ("weight", "bias", "sinks"):
            value.add_(0.1 * torch.randn_like(value))


def build(out: Path, name: str, **changes: Any) -> Path:
    """Write the model of a family as a Hugging Face folder ``out``, which is returned."""
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(name, **changes)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(out)
    save_tokenizer(_tokenizer(), out)
    return out


@cache
def _tokenizer() -> Tokenizer:
    return train_tokenizer(embedded.documents("humaneval")["calibration"])


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description="make small models of all families")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="default: all")
    arguments = parser.parse_args()
    for name in arguments.names or FAMILIES:
        print(build(arguments.out / name, name))


if __name__ == "__main__":
    main()
