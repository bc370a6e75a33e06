"""The soft threshold against the least of what it is the least of, and proximal training through the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.unstructured_pruning import proximal
from tests.calibration import calibrated
from tests.compress.made import spec


@pytest.mark.parametrize("w", [-2.0, -0.5, -0.1, 0.0, 0.3, 0.5, 1.7])
def test_the_soft_threshold_is_the_least_of_penalty_and_distance(w: float) -> None:
    x = torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    best = x[(0.5 * (x - w) ** 2 + 0.5 * x.abs()).argmin()].item()
    assert proximal.soft_threshold(torch.tensor(w), torch.tensor(0.5)).item() == pytest.approx(best, abs=1e-5)


def test_a_step_makes_no_more_zeros_than_the_share() -> None:
    W = torch.randn(9, 31, generator=torch.Generator().manual_seed(0))
    weights = {"a": W.clone()}
    proximal.Soft({"a": 1e6}, proximal.Settings(sparsity=0.4)).after_step(weights, 1.0)
    zeros = int((weights["a"] == 0).sum())
    assert zeros == int(0.4 * W.numel())
    assert torch.equal(weights["a"] == 0, W.abs() <= W.abs().flatten().sort().values[zeros - 1])
    gentle = {"a": W.clone()}
    proximal.Soft({"a": 2.0}, proximal.Settings(sparsity=0.4)).after_step(gentle, 0.001)
    torch.testing.assert_close(gentle["a"], W.sign() * (W.abs() - 0.002).clamp(min=0))


def test_a_step_leaves_as_many_of_a_group_as_the_pattern_says() -> None:
    W = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weights = {"a": W.clone()}
    proximal.Soft({"a": 1e6}, proximal.Settings(sparsity="1:3")).after_step(weights, 1.0)
    assert bool((weights["a"].view(-1, 3).count_nonzero(1) == 1).all())
    kept = weights["a"] != 0
    assert torch.equal(kept.view(-1, 3).int().argmax(1), W.abs().view(-1, 3).argmax(1))


@pytest.mark.parametrize("strength", [0.0, 0.5, 100.0])
def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path, strength: float) -> None:
    calibration = calibrated(odd, tmp_path)
    settings = {"sparsity": 0.5, "strength": strength, "steps": 4, "batch": 2}
    compress(tmp_path / "out", "v", odd, None, calibration, [], spec("proximal", **settings))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)
