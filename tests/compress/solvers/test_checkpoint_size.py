"""Sizes that are known before anything is rounded, against those of what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.checkpoint_size import checkpoint_bytes, layer_bits
from hemorrhage.compress.solvers.vocabulary import vocabulary_grid, vocabulary_matrices
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest

CASES: list[dict[str, Any]] = [
    {"bits": 3, "group_size": 16},
    {"bits": 4, "group_size": "channel", "symmetric": True, "embeddings": 5},
    *({"format": name} for name in ("fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8")),
]


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize(("model_type", "is_tied"), [("llama", True), ("phi", False)])
def test_the_size_is_that_of_the_file(tmp_path: Path, settings: dict[str, Any], model_type: str, is_tied: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=101, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=is_tied,
    )  # fmt: skip
    made: Any = AutoModelForCausalLM.from_config(config)
    made.bfloat16().save_pretrained(tmp_path / "base")
    spec = {"sweep": "s", "method": "rtn", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", tmp_path / "base", None, None, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    model, stored = load(tmp_path / "base", "stored"), rtn.Settings.model_validate(settings)
    linears = linears_of(model)
    layers: dict[str, Any] = dict.fromkeys(linears, stored)
    if stored.embeddings is not None:
        grid = vocabulary_grid(stored.embeddings, stored.group_size)
        layers |= dict.fromkeys(vocabulary_matrices(model), grid)
    assert checkpoint_bytes(model, layers) == manifest["disk_bytes"]
    weights = sum(linear.weight.numel() for linear in linears.values())
    bits = sum(layer_bits(linear, stored) for linear in linears.values())
    biases = sum(8 * linear.bias.nbytes for linear in linears.values() if linear.bias is not None)
    assert manifest["layer_bits"] == pytest.approx((bits + biases) / weights)
