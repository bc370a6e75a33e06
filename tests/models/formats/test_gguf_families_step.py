"""GGUF files of every family that has them: read back bit by bit, and by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.architecture import text_entries
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.gguf_file import ROPE_FACTORS, entries_of
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

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "attention_bias": True, "mlp_bias": True},
    "llama-3": {**WIDE, "model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "llama-linear": {**COMMON, "model_type": "llama", "rope_parameters": {**SCALED, "rope_type": "linear"}},
    "mistral": {**WIDE, "sliding_window": None},
    "qwen2": {**COMMON, "tie_word_embeddings": True},
    "qwen2-yarn": {
        **COMMON,
        "model_type": "qwen2",
        "rope_parameters": {**SCALED, "rope_type": "yarn", "original_max_position_embeddings": 64},
    },
    "qwen3": {**WIDE, "tie_word_embeddings": True},
    "gemma": {**WIDE, "tie_word_embeddings": True},
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
    "phi3": {
        **COMMON,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "granite": {
        **COMMON,
        "residual_multiplier": 0.3,
        "logits_scaling": 4.0,
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.1,
    },
}
"""Models with odd sizes of whole blocks of 32."""

UNREAD = ("gemma", "granite")
"""What transformers has no reader for."""


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
    plain, config = loaded(base), AutoConfig.from_pretrained(base)
    entries = entries_of(tmp_path / "model.gguf", text_entries(base))
    state = plain.state_dict()
    assert set(entries) == set(state) - set(plain.all_tied_weights_keys)
    for parameter, entry in entries.items():
        # 1 + weight has float32's distance from numbers near 1.
        offset = parameter.endswith("norm.weight") and name.startswith("gemma")
        assert (entry.values() - state[parameter]).abs().max() <= (2**-24 if offset else 0), parameter
    if name not in UNREAD:
        theirs = loaded(tmp_path, config, gguf_file="model.gguf")
        expected = logits(plain)
        assert (logits(theirs) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_block_types_are_the_weights_that_others_dequantize(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    spec = {"sweep": "s", "method": "gguf_types", "settings": {"type": "q4_k", "embeddings": True}, "seed": 0}
    compress(tmp_path / "out", "v", base, None, None, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert set(manifest["types"]) == {"q5_0"}
    if name not in UNREAD:
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
