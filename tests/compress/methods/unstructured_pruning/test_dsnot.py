"""DSnoT against its authors' rules, row by row in Python, and what it is for: rows that give out what they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.unstructured_pruning import dsnot
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated
from tests.compress.made import spec


def inputs(rows: int = 9, columns: int = 48) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, sums over a window, variances and norms of inputs with means of their own."""
    generator = torch.Generator().manual_seed(rows)
    W = torch.randn(rows, columns, generator=generator)
    x = torch.rand(columns, generator=generator) * torch.randn(400, columns, generator=generator)
    x += 0.3 * torch.randn(columns, generator=generator)
    return W, 32 * x.mean(0), x.var(0, correction=0), x.square().mean(0).sqrt()


def literal_row(of_row: list[list[float]], settings: dsnot.Settings) -> set[int]:
    """The columns of a row that are pruned in the end: of weights, sums, variances, scores and starting scores."""
    w, sums, var, score, start = of_row
    columns, among = range(len(w)), settings.pattern[1] if settings.pattern else len(w)
    gone = settings.pattern[1] - settings.pattern[0] if settings.pattern else round(settings.severity * len(w))
    pruned: set[int] = set()
    for first in range(0, len(w), among):
        pruned |= set(sorted(range(first, first + among), key=lambda j: start[j])[:gone])
    D = [w[j] * sums[j] for j in columns]
    growable, prunable = set(pruned), set(columns) - pruned
    error = sum(D[j] for j in pruned)
    was_positive = error > 0
    for _ in range(settings.cycles):
        sign = 1 if error > 0 else -1
        candidates = [j for j in growable if sign * D[j] > 0]
        if abs(error) <= settings.threshold or not candidates:
            break
        grows = max(candidates, key=lambda j: sign * D[j] / var[j] ** settings.power)
        if settings.pattern:
            others = [j for j in prunable if j // among == grows // among]
            goes = min(others, key=lambda j: start[j], default=None)
        else:
            goes = min((j for j in prunable if sign * D[j] < 0), key=lambda j: score[j], default=None)
        if goes is None:
            break
        after = error + D[goes] - D[grows]
        if settings.pattern and (after > 0) != was_positive:
            break
        pruned, error = (pruned - {grows}) | {goes}, after
        growable, prunable = growable - {grows}, prunable - {goes}
    return pruned


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, "2:4", "1:3"])
@pytest.mark.parametrize("start", ["wanda", "magnitude"])
@pytest.mark.parametrize("settings", [{}, {"power": 0.0, "threshold": 1.0}, {"cycles": 3}])
def test_the_mask_is_that_of_the_rules(sparsity: float | str, start: str, settings: dict[str, float]) -> None:
    W, sums, variance, norms = inputs()
    chosen = dsnot.Settings.model_validate({"sparsity": sparsity, "start": start, **settings})
    scores = W.abs() * norms
    begin = scores if start == "wanda" else W.abs()
    mask = dsnot.refine(W, sums, variance, scores, begin, chosen)
    for i, row in enumerate(mask):
        columns = [each.tolist() for each in (W[i], sums, variance, scores[i], begin[i])]
        assert set(row.nonzero()[:, 0].tolist()) == literal_row(columns, chosen)


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_rows_give_out_what_they_did(sparsity: float | str) -> None:
    W, sums, variance, norms = inputs(64, 96)
    settings, scores = dsnot.Settings(sparsity=sparsity), W.abs() * norms

    def missing(cycles: int) -> float:
        chosen = settings.model_copy(update={"cycles": cycles})
        mask = dsnot.refine(W, sums, variance, scores, scores, chosen)
        return (W * sums).masked_fill(~mask, 0).sum(1).abs().mean().item()

    assert missing(50) < 0.6 * missing(0)


def test_no_cycles_leave_the_start() -> None:
    W, sums, variance, norms = inputs()
    scores = W.abs() * norms
    mask = dsnot.refine(W, sums, variance, scores, scores, dsnot.Settings(sparsity=0.5, cycles=0))
    assert torch.equal(mask, scores <= scores.sort(1).values[:, 23:24])


@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path, start: str) -> None:
    calibration = calibrated(odd, tmp_path)
    compress(tmp_path / "out", "dsnot", odd, None, calibration, [], spec("dsnot", sparsity=0.5, start=start))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    base = {name: module.weight for name, module in linears_of(load(odd)).items()}
    for name, module in linears_of(load(tmp_path / "out", base=odd)).items():
        kept = module.weight != 0
        assert torch.equal(module.weight[kept], base[name][kept])
