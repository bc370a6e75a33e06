"""A sliced model: its norms, its blocks between bases, and building it from tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import sliced
from hemorrhage.models.formats.low_rank import LowRankLinear
from hemorrhage.models.formats.storage import replace

TOKENS = torch.arange(3, 40)[None]


def whole(tiny: Path, out: Path) -> tuple[Path, Any]:
    """The tiny model as a sliced one that keeps all columns, in the basis it has: norms in the layers behind them."""
    shutil.copytree(tiny, out)
    old = load_file(tiny / "model.safetensors")
    new = {"model.embed_tokens.weight": old["model.embed_tokens.weight"]}
    new["lm_head.weight"] = old["model.embed_tokens.weight"] * old["model.norm.weight"]
    for name, value in old.items():
        block, _, part = name.partition(".self_attn.")
        if part:
            before = "input_layernorm" if not part.startswith("o_proj") else None
        else:
            block, _, part = name.partition(".mlp.")
            before = "post_attention_layernorm" if part and not part.startswith("down_proj") else None
        if part:
            new[name] = value * old[f"{block}.{before}.weight"] if before else value
    for layer in range(5):
        for shortcut in ("attention", "mlp"):
            new[f"model.layers.{layer}.{shortcut}_shortcut"] = torch.eye(64)
    save_file({name: value.clone() for name, value in new.items()}, out / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(out)
    config.hemorrhage = {"form": "sliced", "kept": 64}
    config.tie_word_embeddings = False
    return out, config


def test_a_norm_divides_by_the_root_over_the_original_width() -> None:
    norm, x = sliced.SlicedNorm(8, 1e-5), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = [
        [[float(v) / (sum(float(w) ** 2 for w in row) / 8 + 1e-5) ** 0.5 for v in row] for row in part] for part in x
    ]
    torch.testing.assert_close(norm(x), torch.tensor(expected))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_with_all_columns_in_their_own_basis_it_is_the_model(tiny: Path, tmp_path: Path) -> None:
    folder, config = whole(tiny, tmp_path / "sliced")
    model = sliced.build(folder, config, "float32").eval()
    with torch.no_grad():
        expected = load(tiny)(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)
    assert set(sliced.tensors(model)) == set(load_file(folder / "model.safetensors"))


def test_a_missing_tensor_is_named_and_a_packed_layer_refused(tiny: Path, tmp_path: Path) -> None:
    folder, config = whole(tiny, tmp_path / "sliced")
    model = sliced.build(folder, config, "stored")
    replace(model, "model.layers.0.mlp.up_proj", LowRankLinear(torch.ones(1, 64), torch.ones(172, 1), None))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj: layers of a sliced model can't be packed"):
        sliced.tensors(model)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp_shortcut"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(OSError, match=r"model\.layers\.3\.mlp_shortcut is not in its safetensors"):
        sliced.build(folder, config, "float32")


def test_a_parameter_may_take_another_shape() -> None:
    linear, embedding = nn.Linear(4, 3, bias=False), nn.Embedding(5, 4)
    sliced.set_parameter(linear, "weight", torch.ones(2, 3))
    sliced.set_parameter(embedding, "weight", torch.ones(5, 2))
    assert (linear.out_features, linear.in_features, embedding.embedding_dim) == (2, 3, 2)
    assert linear(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
