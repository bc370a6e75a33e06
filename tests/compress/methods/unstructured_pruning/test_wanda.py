"""Tests of wanda."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import magnitude, wanda
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated
from tests.compress.made import layer


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("prune"))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, "2:4", "1:3"])
def test_wanda_is_a_double_loop(sparsity: float | str) -> None:
    weight, moment = layer(rows=10)
    norms = moment.diagonal().sqrt()
    settings = wanda.Settings(sparsity=sparsity)
    expected = torch.zeros_like(weight, dtype=torch.bool)
    for i in range(weight.shape[0]):
        scores = [abs(weight[i, j].item()) * norms[j].item() for j in range(weight.shape[1])]
        if settings.pattern:
            kept, among = settings.pattern
            for start in range(0, len(scores), among):
                group = sorted(range(start, start + among), key=lambda j: scores[j])
                expected[i, group[: among - kept]] = True
        else:
            drop = sorted(range(len(scores)), key=lambda j: scores[j])[: round(settings.severity * len(scores))]
            expected[i, drop] = True
    assert torch.equal(wanda.mask(weight, norms, settings), expected)


def test_masks_leave_the_other_weights_alone(tiny: Path, calibration: Path) -> None:
    base = {name: module.weight for name, module in linears_of(load(tiny)).items()}
    for method in (magnitude, wanda):
        model = load(tiny)
        method.alter(model, method.Settings(sparsity=0.5), Context(Statistics(calibration)))
        for name, module in linears_of(model).items():
            kept = module.weight != 0
            assert torch.equal(module.weight[kept], base[name][kept])
