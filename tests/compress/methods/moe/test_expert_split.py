"""Tests of expert_split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.calibrate.expert_usage import mlp_inputs
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.moe import expert_split
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.compress.mixtures import TOKENS, assert_close, logits, plain
from tests.layers import block_of


@pytest.fixture(scope="module")
def dense_calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("dense"))


# Splitting


@pytest.mark.parametrize("scale", ["sum", "expected"])
@pytest.mark.parametrize("experts", [2, 4])
def test_a_split_with_all_experts_is_the_dense_model(tiny: Path, experts: int, scale: Any) -> None:
    model = load(tiny)
    before = logits(model)
    parameters = sum(value.numel() for value in model.parameters())
    settings = expert_split.Settings(experts=experts, top_k=experts, scale=scale)
    assert (settings.severity, settings.statistics) == (0, ())
    expert_split.alter(model, settings, Context())
    assert_close(logits(model), before)
    assert sum(value.numel() for value in model.parameters()) == parameters + 5 * experts * 64


@pytest.mark.parametrize("scale", ["sum", "expected"])
@pytest.mark.parametrize("router", ["random", "regression"])
def test_a_split_computes_with_the_chosen_channels(
    tiny: Path, dense_calibration: Path, router: Any, scale: Any
) -> None:
    dense = load(tiny)
    model = load(tiny)
    settings = expert_split.Settings(experts=4, top_k=1 if router == "random" else 3, router=router, scale=scale)
    expert_split.alter(model, settings, Context(Statistics(dense_calibration)))
    factor = 1 if scale == "sum" else 4 / settings.top_k
    for index, mixture, x in mlp_inputs(model, TOKENS):
        mlp = block_of(dense, index).mlp
        # Each channel of the dense MLP lies in one expert.
        rows = torch.cat([expert.w1.weight for expert in mixture.experts])
        place = torch.cdist(rows, mlp.gate_proj.weight).argmin(1).view(4, -1)
        assert place.flatten().sort().values.equal(torch.arange(172))
        assert torch.equal(rows, mlp.gate_proj.weight[place.flatten()])
        inner = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        logit = x @ mixture.gate.weight.T
        assert 1e-4 < logit.square().mean().sqrt() < 1e-2
        best = logit.topk(settings.top_k).indices
        mask = torch.zeros_like(inner)
        for chosen in best.T:
            mask.scatter_(1, place[chosen], 1.0)
        assert torch.equal(mask.sum(1), torch.full((len(x),), 43.0 * settings.top_k))
        expected = factor * (inner * mask) @ mlp.down_proj.weight.T
        with torch.no_grad():
            found = mixture(x[None])[0]
        assert (found - expected).norm() < 5e-3 * expected.norm()


def test_the_router_is_ridge_regression(tiny: Path) -> None:
    model = load(tiny)
    _, mlp, x = next(iter(mlp_inputs(model, TOKENS)))
    channels = torch.randperm(172, generator=torch.Generator().manual_seed(1)).view(4, -1)
    router = expert_split.fit(mlp, x, channels).double()
    inner = (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)).detach()
    norms = torch.zeros(len(x), 4)
    for expert in range(4):
        for token in range(len(x)):
            total = torch.zeros(64)
            for channel in channels[expert].tolist():
                total += inner[token, channel] * mlp.down_proj.weight.detach()[:, channel]
            norms[token, expert] = total.norm()
    target = (norms / norms.sum(1, keepdim=True) - 0.25).double()
    penalty = (0.01 * x.square().sum(0).mean()).sqrt().double() * torch.eye(64)
    system = torch.cat([x.double(), penalty])
    expected = torch.linalg.lstsq(system, torch.cat([target, torch.zeros(64, 4)])).solution.T
    scale = 1e-3 / (x.double() @ expected.T).square().mean().sqrt()
    assert (router - scale * expected).norm() < 1e-3 * router.norm()


def test_a_fitted_router_loses_less_than_a_random_one(tiny: Path, dense_calibration: Path) -> None:
    before = logits(load(tiny)).log_softmax(-1)
    divergence = {}
    for router in ("random", "regression"):
        model = load(tiny)
        settings = expert_split.Settings(experts=4, top_k=2, router=router)
        expert_split.alter(model, settings, Context(Statistics(dense_calibration)))
        after = logits(model).log_softmax(-1)
        divergence[router] = (before.exp() * (before - after)).sum(-1).mean().item()
    assert 0 < divergence["regression"] < divergence["random"]


def test_a_split_checkpoint_reads_back(tiny: Path, dense_calibration: Path, tmp_path: Path) -> None:
    settings = spec("expert_split", experts=4, top_k=3)
    compress(tmp_path / "v", "v", tiny, None, dense_calibration, [], settings)
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    assert (manifest["axis"], manifest["severity"]) == ("routing", 0.25)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_local_experts"], config["num_experts_per_tok"]) == (43, 4, 3)
    # transformers' grouped product of experts wants rows of whole 16 bytes, which 43 floats are not.
    theirs = plain(tmp_path / "v", tiny, experts_implementation="eager")
    assert_close(logits(theirs), logits(load(tmp_path / "v", base=tiny)))
