"""GGUF files of every family that has them: read back bit by bit, and by transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.gguf_file import ROPE_FACTORS, entries_of
from hemorrhage.models.formats.storage import distinct
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests import families

COMMON: dict[str, Any] = {**families.COMMON, "hidden_size": 160, "intermediate_size": 224, "num_key_value_heads": 2}
WIDE: dict[str, Any] = {**COMMON, "head_dim": 48}
GEMMA: dict[str, Any] = {**WIDE, "tie_word_embeddings": True, "sliding_window": 8, "query_pre_attn_scalar": 48}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALED = {"rope_theta": 1e4, "factor": 4.0}

ALL_HEADS = {"num_key_value_heads": 4}
TIED = {"tie_word_embeddings": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 8, "layer_types": [*["sliding_attention"] * 3, "full_attention"]}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
YARN = {**SCALED, "rope_type": "yarn", "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
GPT2: dict[str, Any] = {**families.GPT2_LIKE, "n_embd": 160, "n_positions": 96}
DEEPSEEK: dict[str, Any] = {
    **COMMON,
    **families.DEEPSEEK,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "v_head_dim": 24,
    "moe_intermediate_size": 64,
}
ROUTED: dict[str, Any] = {
    **WIDE,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
MAMBA: dict[str, Any] = {"hidden_size": 160, "state_size": 8, "num_hidden_layers": 4, "time_step_rank": 10}
SCALES = {"logits_scaling": 4.0, "embedding_multiplier": 6.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "attention_bias": True, "mlp_bias": True},
    "llama-3": {**WIDE, "model_type": "llama", "rope_parameters": LLAMA3, **TIED},
    "llama-linear": {**COMMON, "model_type": "llama", "rope_parameters": {**SCALED, "rope_type": "linear"}},
    "mistral": {**WIDE, "sliding_window": None},
    "mixtral": {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    "arcee": {**WIDE, "head_dim": 48},
    "smollm3": {**WIDE, **TIED},
    "qwen2": {**COMMON, **TIED},
    "qwen2-yarn": {**COMMON, "model_type": "qwen2", "rope_parameters": YARN},
    "qwen2_moe": {**COMMON, **EXPERTS, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    "qwen3": {**WIDE, **TIED},
    "qwen3_moe": {**WIDE, **EXPERTS, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "gemma": {**WIDE, **TIED},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "num_hidden_layers": 7},
    "gemma3-untied": {
        **GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": {**COMMON, "sliding_window": None, "rope_parameters": HALF},
    "phi": {**COMMON, "rope_parameters": HALF},
    "granite": {**COMMON, **SCALES},
    "granitemoe": {
        **COMMON,
        **SCALES,
        **TIED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
    },
    "olmo": {**COMMON, "clip_qkv": 1.0},
    "olmo2": {**COMMON},
    "olmo3": {**COMMON, **WINDOWS},
    "olmoe": {**COMMON, **ALL_HEADS, **EXPERTS, "intermediate_size": 64},
    "starcoder2": {**COMMON, **TIED},
    "nemotron": {**COMMON, "head_dim": 40, "attention_bias": True, "mlp_bias": True, "rope_parameters": HALF},
    "stablelm": {**COMMON, "use_qkv_bias": True, "rope_parameters": HALF},
    "stablelm-parallel": {
        **COMMON,
        "model_type": "stablelm",
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "rope_parameters": HALF,
    },
    "glm": {**COMMON, "head_dim": 40, "attention_bias": True},
    "glm4": {**WIDE, "attention_bias": True},
    "glm4_moe": {**ROUTED, "use_qk_norm": True, "attention_bias": True},
    "cohere": {**COMMON, **TIED, "logit_scale": 0.25},
    "cohere2": {**COMMON, **TIED, **WINDOWS, "head_dim": 40, "logit_scale": 0.25},
    "exaone4": {**COMMON, "sliding_window": None, "layer_types": ["full_attention"] * 4},
    "ernie4_5": {**WIDE, **TIED},
    "ernie4_5_moe": {
        **COMMON,
        **TIED,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 3,
    },
    "seed_oss": {**WIDE, "attention_bias": True},
    "hunyuan_v1_dense": {**WIDE},
    "hunyuan_v1_moe": {**WIDE, "num_experts": 4, "moe_topk": 2, "intermediate_size": 64},
    "dots1": {**ROUTED, **ALL_HEADS, "n_group": 1, "topk_group": 1},
    "gpt_oss": {
        **WIDE,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "rope_parameters": YARN,
    },
    "deepseek_v2": {**DEEPSEEK, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**DEEPSEEK, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "lfm2": {
        **COMMON,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "block_multiple_of": 32,
    },
    "mamba": {**families.BASIC, **MAMBA, **TIED},
    "falcon_mamba": {**families.BASIC, **MAMBA},
    "gpt2": {**GPT2, "n_inner": 224},
    "gpt_bigcode": {**GPT2},
    "gpt_neox": {**COMMON, "rope_parameters": HALF},
    "gpt_neox-serial": {**COMMON, "model_type": "gpt_neox", "use_parallel_residual": False, "rope_parameters": HALF},
    "bloom": {**families.BASIC, "hidden_size": 160, "n_layer": 4, "n_head": 4},
    "falcon": {**COMMON, **TIED, "new_decoder_architecture": False, "multi_query": True, "bias": False},
    "falcon-40b": {**COMMON, **TIED, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-11b": {
        **COMMON,
        **TIED,
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "mpt": {**families.BASIC, "d_model": 160, "n_layers": 4, "n_heads": 4, "max_seq_len": 96},
}
"""Models with odd sizes of whole blocks of 32."""

QUICK = ("llama", "mixtral", "qwen2_moe", "gemma2", "gpt2", "bloom", "falcon-40b", "deepseek_v3")
"""Those whose blocks are tried each time; the others with ``-m families``."""

READ = (
    *("llama", "llama-3", "llama-linear", "mistral", "qwen2", "qwen2-yarn", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("gemma2", "gemma3_text", "gemma3-untied", "phi3", "starcoder2", "stablelm", "gpt2", "bloom", "nemotron"),
)
"""What transformers has a reader for. Those of Falcon and gpt-oss read another model than llama.cpp does."""


def tried(names: Iterable[str]) -> list[Any]:
    """``names`` as parameters of a test: all but those of ``QUICK`` with the mark ``families``."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.families) for name in names]


def base_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the bfloat16 model ``name`` into ``folder``, which is returned."""
    monkeypatch.setitem(families.FAMILIES, name, MODELS[name])
    return families.build(folder, name)


def loaded(folder: Path, config: Any = None, **arguments: Any) -> Any:
    """What transformers makes of a folder, in float32; attention as it is written, which caps its logits."""
    # Of a GGUF file it takes Mistral for the Llama that it is, but knows no such file of a Mistral.
    if config is not None and config.model_type != "mistral":
        arguments["config"] = config
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **arguments
    ).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(3, 500, (1, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        computed: torch.Tensor = model(tokens, use_cache=False).logits
    return computed


@pytest.mark.parametrize("name", MODELS)
def test_a_file_holds_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    export(base, tmp_path / "model.gguf", "gguf")
    config, state = AutoConfig.from_pretrained(base), distinct(load(base))
    entries = entries_of(tmp_path / "model.gguf", config)
    assert set(entries) == set(state)
    for parameter, entry in entries.items():
        # 1 + weight has float32's distance from numbers near 1.
        offset = parameter.endswith("norm.weight") and name.startswith(("gemma", "nemotron"))
        allowed = 1e-6 if parameter.endswith("A_log") else 2**-24 if offset else 0
        assert (entry.values() - state[parameter]).abs().max() <= allowed, parameter
    if name in READ:
        theirs = loaded(tmp_path, config, gguf_file="model.gguf")
        expected = logits(loaded(base))
        assert (logits(theirs) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", tried(MODELS))
def test_block_types_are_the_weights_that_others_dequantize(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    spec = {"sweep": "s", "method": "gguf_types", "settings": {"type": "q4_k", "embeddings": True}, "seed": 0}
    compress(tmp_path / "out", "v", base, None, None, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert set(manifest["types"]) - {"plain"} == {"q5_0"}
    if name in READ:
        ours = load(tmp_path / "out", base=base)
        ours.set_attn_implementation("eager")
        theirs = loaded(tmp_path / "out", AutoConfig.from_pretrained(base), gguf_file="model.gguf")
        expected = logits(ours)
        assert (logits(theirs) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (expected - logits(loaded(base))).abs().max() > 1e-2 * expected.abs().max()


def test_the_factors_of_llama_3_are_those_that_transformers_divides_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("llama-3", tmp_path / "base", monkeypatch)
    export(base, tmp_path / "model.gguf", "gguf")
    stored = next(each for each in GGUFReader(tmp_path / "model.gguf").tensors if each.name == ROPE_FACTORS)
    factors = torch.tensor(stored.data)
    plain = 1e4 ** -(torch.arange(0, 48, 2) / 48)
    assert torch.allclose(plain / factors, loaded(base).model.rotary_emb.inv_freq, rtol=1e-6)
    assert factors.min() == 1
    assert factors.max() == 8


def test_metadata_says_what_a_family_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: dict[str, dict[str, Any]] = {
        "gemma2": {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        "gemma3-untied": {"rope.scaling.type": "linear", "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
        "qwen2-yarn": {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
        "granite": {"logit_scale": 4.0, "embedding_scale": 6.0},
        "phi3": {"rope.dimension_count": 20, "attention.key_length": 40},
    }
    for name, entries in expected.items():
        export(base_of(name, tmp_path / name, monkeypatch), tmp_path / f"{name}.gguf", "gguf")
        fields = GGUFReader(tmp_path / f"{name}.gguf").fields
        architecture = fields["general.architecture"].contents()
        assert {key: fields[f"{architecture}.{key}"].contents() for key in entries} == entries
