"""An altered model as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.models import folder
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.low_rank import LowRankLinear
from hemorrhage.models.formats.storage import replace
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.families import build

TOKENS = torch.arange(3, 40)[None]
NAME = "model.layers.1.mlp.up_proj"


def saved(model: Any, tiny: Path, out: Path, dtype: torch.dtype = torch.float32, shared: Path | None = None) -> Path:
    out.mkdir()
    folder.save(model, dtype, tiny, out, shared)
    return out


def test_transformers_reads_what_was_saved(tiny: Path, tmp_path: Path) -> None:
    model: Any = load(tiny)
    with torch.no_grad():
        model.get_submodule(NAME).weight.mul_(1.5)
        expected = model(TOKENS).logits
    out = saved(model, tiny, tmp_path / "out")
    assert {file.name for file in out.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not {file.name for file in out.iterdir()} & {"manifest.json", "README.md"}
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, expected)
    # Tied weights are stored once, and the configuration is the base's.
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text()) == json.loads((tiny / "config.json").read_text())


def test_what_the_base_has_is_not_stored_again(tiny: Path, tmp_path: Path) -> None:
    model: Any = load(tiny)
    model.get_submodule(NAME).weight.data.mul_(1.5)
    out = saved(model, tiny, tmp_path / "out", shared=tiny)
    assert set(load_file(out / "model.safetensors")) == {f"{NAME}.weight"}
    assert dict(Weights(out, tiny).items()).keys() == load_file(tiny / "model.safetensors").keys()


def test_weights_are_stored_in_the_dtype_that_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    out = saved(load(tiny), tiny, tmp_path / "out", torch.bfloat16)
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert folder.dtype_of(Weights(out, None)) == torch.bfloat16
    assert folder.dtype_of(Weights(tiny, None)) == torch.float32


def test_narrow_weights_and_own_forms_are_named_in_the_configuration(tiny: Path, tmp_path: Path) -> None:
    model: Any = load(tiny)
    mlp = model.model.layers[2].mlp
    for name, parts in {
        "gate_proj": (slice(None, 100),),
        "up_proj": (slice(None, 100),),
        "down_proj": (slice(None), slice(None, 100)),
    }.items():
        linear = getattr(mlp, name)
        linear.weight = nn.Parameter(linear.weight.data[parts].clone())
    linear = model.get_submodule(NAME)
    u, s, v = torch.linalg.svd(linear.weight.data, full_matrices=False)
    replace(model, NAME, LowRankLinear(v[:8], u[:, :8] * s[:8], None))
    with torch.no_grad():
        expected = model(TOKENS).logits
    out = saved(model, tiny, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["hemorrhage"] == {
        "narrow": sorted(f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        "forms": ["low_rank"],
    }
    names = set(load_file(out / "model.safetensors"))
    assert {f"{NAME}.low_rank_in", f"{NAME}.low_rank_out"} <= names
    assert f"{NAME}.weight" not in names
    with torch.no_grad():
        torch.testing.assert_close(load(out)(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    dense = dict(folder.dense_weights(model))
    torch.testing.assert_close(dense[f"{NAME}.weight"], (u[:, :8] * s[:8]) @ v[:8])
    assert sum(value.numel() for value in dense.values()) < sum(value.numel() for value in load(tiny).parameters())


@pytest.mark.parametrize(
    ("family", "part"), [("deepseek_v3", "e_score_correction_bias"), ("mixtral", "block_sparse_moe.gate.weight")]
)
def test_the_few_tensors_of_a_wider_dtype_stay_as_they_are(family: str, part: str, tmp_path: Path) -> None:
    original = build(tmp_path / "original", family)
    tensors = load_file(original / "model.safetensors")
    wide = {name: value.float() + 0.1 * torch.randn(value.shape) for name, value in tensors.items() if part in name}
    assert wide
    save_file({**tensors, **wide}, original / "model.safetensors", {"format": "pt"})
    prepare({"source": "path", "path": str(original)}, tmp_path / "base")
    spec = {"sweep": "s", "method": "rtn", "settings": {"bits": 8, "group_size": 16}, "seed": 0}
    compress(tmp_path / "v", "v", tmp_path / "base", None, None, [], spec)
    assert "failure" not in read_manifest(tmp_path / "v"), read_manifest(tmp_path / "v")["failure"]
    stored = Weights(tmp_path / "v", tmp_path / "base")
    assert all(torch.equal(stored.tensor(name), value) for name, value in wide.items())
    assert {stored.dtype(name) for name in wide} == {torch.float32}
    assert stored.dtype("model.embed_tokens.weight") == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "settings"), [("hqq", {"bits": 4, "group_size": 4}), ("magnitude", {"sparsity": 0.5})]
)
def test_sizes_are_those_of_the_dense_weights(
    tiny: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    prepare({"source": "path", "path": str(tiny)}, tmp_path / "base")
    compress(tmp_path / "v", "v", tmp_path / "base", None, None, [], spec)
    model = load(tmp_path / "v", "stored", as_stored=True, base=tmp_path / "base")
    assert folder.dense_sizes(model) == {name: value.numel() for name, value in folder.dense_weights(model)}
