"""The block soft threshold against the least of what it is the least of, and group lasso through the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.structured_pruning import group_lasso
from hemorrhage.compress.solvers.coupled import Coupled
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify
from tests.calibration import calibrated
from tests.compress.made import spec


@pytest.mark.parametrize("size", [0.2, 0.7, 3.0])
def test_the_block_soft_threshold_is_the_least_of_penalty_and_distance(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    w *= size / w.norm()
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    # Where the least is zero no gradient finds it.
    x.data = w.clone()
    optimizer = torch.optim.LBFGS([x], max_iter=500, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = 0.5 * (x - w).square().sum() + 0.6 * (x.square().sum() + 1e-24).sqrt()
        value.backward()
        return value

    optimizer.step(objective)
    factor = group_lasso.block_factor(w.norm()[None], 0.6)
    torch.testing.assert_close(factor * w, x.detach(), atol=1e-5, rtol=1e-4)


def test_groups_of_zeros_stay() -> None:
    assert group_lasso.block_factor(torch.zeros(1), 0.0).isfinite().all()


def test_norms_and_shrinking_are_of_rows_and_columns() -> None:
    # Two groups: rows 0, 2 and 1, 3 of a layer, and columns 0 and 1 of its reader.
    coupled = Coupled({"up": torch.tensor([[0, 2], [1, 3]])}, "down", torch.tensor([[0], [1]]))
    generator = torch.Generator().manual_seed(0)
    weights = {"b.up": torch.randn(4, 3, generator=generator), "b.down": torch.randn(5, 2, generator=generator)}
    before = {name: weight.clone() for name, weight in weights.items()}
    norms, number = group_lasso.group_norms(weights, "b", coupled)
    assert number == 2 * 3 + 5
    for group in (0, 1):
        values = [*before["b.up"][[group, group + 2]].flatten(), *before["b.down"][:, group]]
        assert norms[group].item() == pytest.approx(sum(float(v) ** 2 for v in values) ** 0.5, rel=1e-5)
    group_lasso.shrink(weights, "b", coupled, torch.tensor([0.5, 2.0]))
    for group, factor in ((0, 0.5), (1, 2.0)):
        assert torch.equal(weights["b.up"][[group, group + 2]], factor * before["b.up"][[group, group + 2]])
        assert torch.equal(weights["b.down"][:, group], factor * before["b.down"][:, group])


def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path) -> None:
    calibration = calibrated(odd, tmp_path)
    settings = {"removed": 0.3, "steps": 4, "batch": 2, "protect_first": 0, "protect_last": 0, "strength": 2.0}
    compress(tmp_path / "out", "v", odd, None, calibration, [], spec("group_lasso", **settings))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["severity"] == pytest.approx(0.3, abs=0.02)
    model = load(tmp_path / "out", "stored", base=odd)
    verify(load(tmp_path / "out", base=odd), tmp_path / "out")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
