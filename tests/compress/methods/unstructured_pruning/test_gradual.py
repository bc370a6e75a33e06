"""Gradual pruning: scores by the papers' updates, the schedule, and the same tokens for every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import gradual
from hemorrhage.compress.solvers.pruned_training import train
from hemorrhage.compress.solvers.training import batches
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated
from tests.compress.made import spec


@pytest.mark.parametrize("by", ["movement", "taylor"])
def test_scores_are_those_of_the_update(odd: Path, tmp_path: Path, by: str) -> None:
    # With a rate of almost nothing weights stay, so that the gradients of each step can be had again.
    statistics = Statistics(calibrated(odd, tmp_path))
    settings = gradual.Settings.model_validate(
        {"sparsity": 0.5, "by": by, "steps": 3, "batch": 2, "learning_rate": 1e-30}
    )
    model = load(odd, "stored")
    scores = {name: torch.zeros_like(each.weight, dtype=torch.float32) for name, each in linears_of(model).items()}
    rule = gradual.Gradual(scores, settings)
    train(model, rule, settings, Context(statistics, seed=1))
    literal = load(odd, "stored").float()
    layers = linears_of(literal)
    W = {name: linear.weight.detach().clone() for name, linear in layers.items()}
    S = {name: torch.zeros_like(weight) for name, weight in W.items()}
    drawn = batches(statistics.tokens(), 2, 1)
    for step in range(3):
        share = 0.5 * (1 - (1 - min(1, (step + 1) / 2.4)) ** 3)
        for name, linear in layers.items():
            ranked = (S[name] if step else W[name].abs()).flatten().sort(stable=True).indices
            M = torch.ones(W[name].numel())
            M[ranked[: round(share * len(M))]] = 0
            linear.weight = torch.nn.Parameter(W[name] * M.view_as(W[name]))
        tokens = next(drawn)
        literal(tokens, labels=tokens).loss.backward()
        for name, linear in layers.items():
            assert linear.weight.grad is not None
            change = linear.weight.grad * W[name]
            S[name] = S[name] - change if by == "movement" else S[name] + change**2
    for name, expected in S.items():
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-9)


def test_sparsity_grows_as_a_cubic_and_stays() -> None:
    settings = gradual.Settings(sparsity=0.8, steps=100)
    shares = [gradual.share_at(step, settings) for step in range(100)]
    assert shares[39] == pytest.approx(0.8 * (1 - 0.5**3))
    assert shares == sorted(shares)
    assert shares[79:] == pytest.approx([0.8] * 21)


@pytest.mark.parametrize("by", ["magnitude", "taylor", "movement"])
def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path, by: str) -> None:
    calibration = calibrated(odd, tmp_path)
    settings = {"sparsity": 0.5, "by": by, "steps": 4, "batch": 2, "learning_rate": 1e-3}
    compress(tmp_path / "out", "v", odd, None, calibration, [], spec("gradual", **settings))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)
    model = load(tmp_path / "out", "stored", base=odd)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    moved = [
        not torch.equal(module.weight[module.weight != 0], base.weight[module.weight != 0])
        for module, base in zip(linears_of(model).values(), linears_of(load(odd, "stored")).values(), strict=True)
    ]
    assert all(moved)
