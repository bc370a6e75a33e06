"""Tests of upcycling."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from hemorrhage.calibrate.expert_usage import mlp_inputs
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.moe import upcycling
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import mixtures
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.compress.made import spec
from tests.compress.mixtures import TOKENS, assert_close, logits, plain

# Upcycling


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (8, 1), (3, 3)])
def test_an_upcycled_model_is_the_dense_one(tiny: Path, experts: int, top_k: int) -> None:
    model = load(tiny)
    before = logits(model)
    parameters = sum(value.numel() for value in model.parameters())
    settings = upcycling.Settings(experts=experts, top_k=top_k)
    upcycling.alter(model, settings, Context())
    assert type(model).__name__ == "MixtralForCausalLM"
    assert_close(logits(model), before)
    routers = torch.stack([mixture.gate.weight for mixture in mixtures(model).values()])
    assert routers.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(routers[0], routers[1])
    added = sum(value.numel() for value in model.parameters()) - parameters
    assert added == 5 * ((experts - 1) * 3 * 64 * 172 + experts * 64)
    assert upcycling.share_added(model) == pytest.approx(added / parameters)


def test_an_upcycled_checkpoint_is_an_ordinary_mixtral(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", tiny, None, None, [], spec("upcycling", experts=4, top_k=2))
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    assert manifest["severity"] > 1
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    assert "num_experts" not in config
    model = plain(tmp_path / "v", tiny)
    assert type(model).__name__ == "MixtralForCausalLM"
    assert_close(logits(model), logits(load(tiny)))
    tensors = dict(Weights(tmp_path / "v", tiny).items())
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in tensors
    assert "lm_head.weight" not in tensors


def test_without_normalisation_the_output_shrinks_by_what_was_not_chosen(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    dense = {index: copy.deepcopy(mlp) for index, mlp, _ in mlp_inputs(model, TOKENS)}
    upcycling.alter(model, upcycling.Settings(experts=4, top_k=2, normalize=False), Context())
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    for index, mixture, x in mlp_inputs(model, TOKENS):
        probability = (x @ mixture.gate.weight.T).softmax(-1).topk(2).values.sum(-1)
        assert probability.max() < 1
        with torch.no_grad():
            assert_close(mixture(x[None])[0], probability[:, None] * dense[index](x))
    compress(tmp_path / "v", "v", tiny, None, None, [], spec("upcycling", normalize=False))
    assert "failure" not in read_manifest(tmp_path / "v")
    assert_close(logits(plain(tmp_path / "v", tiny)), logits(model))
    # Packed on top of that: the gate of the shared expert that is not there stays as it is.
    quantized = spec("rtn", bits=4, group_size=4, symmetric=True) | {"on": "v"}
    compress(tmp_path / "q", "q", tiny, tmp_path / "v", None, [], quantized)
    assert "failure" not in read_manifest(tmp_path / "q")
    assert_close(logits(plain(tmp_path / "q", tiny)), logits(load(tmp_path / "q", base=tiny)))


def test_noise_makes_the_experts_differ(tiny: Path) -> None:
    model = load(tiny)
    before, weight = logits(model), model.model.layers[0].mlp.up_proj.weight.detach().clone()
    upcycling.alter(model, upcycling.Settings(experts=4, noise=0.1), Context())
    copies = [expert.w3.weight - weight for expert in mixtures(model)["model.layers.0.block_sparse_moe"].experts]
    for change in copies:
        assert (change.std() / weight.square().mean().sqrt()).item() == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(copies[0], copies[1])
    assert (logits(model) - before).abs().max() > 1e-3
