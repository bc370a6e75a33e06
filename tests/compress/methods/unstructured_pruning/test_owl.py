"""OWL against its definition, and its number of zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import owl, sparsegpt, wanda
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated

METHODS = ["wanda", "sparsegpt", "magnitude"]


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("owl"))


def literal_outliers(tiny: Path, statistics: Statistics, threshold: float) -> list[float]:
    """D of every block, with all its scores in one list, float64."""
    model = load(tiny)
    linears = linears_of(model)
    norms = {name: statistics.norms(first) for first, names in statistics.shared().items() for name in names}
    found = []
    for index in range(len(blocks(model))):
        scores: list[float] = []
        for name, linear in linears.items():
            if name.startswith(f"model.layers.{index}."):
                scores += (linear.weight.double().abs() * norms[name].double()).flatten().tolist()
        mean = sum(scores) / len(scores)
        found.append(sum(score > threshold * mean for score in scores) / len(scores))
    return found


def literal_ratios(outliers: list[float], sparsity: float, spread: float) -> list[float]:
    """The sparsities of blocks of one size, as in the paper: D in [0, 2 · spread], centred, S = s - D."""
    low, high = min(outliers), max(outliers)
    scaled = [(share - low) / (high - low) * 2 * spread for share in outliers]
    return [sparsity - (share - sum(scaled) / len(scaled)) for share in scaled]


def shares_of_zeros(model: Any) -> list[float]:
    found = []
    stack: Any = blocks(model)
    for block in stack:
        weights = [module.weight for module in block.modules() if isinstance(module, torch.nn.Linear)]
        found.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_blocks_get_the_papers_sparsities(tiny: Path, calibration: Path, method: Any, sparsity: float) -> None:
    statistics = Statistics(calibration)
    outliers = literal_outliers(tiny, statistics, 5)
    expected = literal_ratios(outliers, sparsity, 0.08)
    assert max(expected) - min(expected) == pytest.approx(0.16)
    model = load(tiny)
    owl.alter(model, owl.Settings(sparsity=sparsity, by=method), Context(statistics))
    assert shares_of_zeros(model) == pytest.approx(expected, abs=1e-3)
    assert shares_of_zeros(model)[outliers.index(max(outliers))] == min(shares_of_zeros(model))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.2, 0.333, 0.5, 0.65, 0.8, 0.97])
def test_zeros_of_the_whole_are_exact(tiny: Path, calibration: Path, method: Any, sparsity: float) -> None:
    model = load(tiny)
    owl.alter(model, owl.Settings(sparsity=sparsity, by=method), Context(Statistics(calibration)))
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears_of(model).values())
    total = sum(linear.weight.numel() for linear in linears_of(model).values())
    # The last layer's two blocks of columns (of 172) round with SparseGPT.
    assert abs(zeros - sparsity * total) <= (0.5 if method != "sparsegpt" else 1.5)
    for share in shares_of_zeros(model):
        assert 0 < share < 1


@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_sparsities_stay_between_none_and_all(sparsity: float) -> None:
    outliers, sizes = [0.01, 0.02, 0.05, 0.011], [3, 1, 2, 4]
    found = owl.sparsities(outliers, sizes, sparsity, 0.3)
    mean = sum(share * size for share, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity)
    assert all(0.0999 * sparsity < share < 1 - 0.0999 * (1 - sparsity) for share in found)
    order = sorted(range(4), key=lambda index: outliers[index])
    assert sorted(range(4), key=lambda index: -found[index]) == order


def test_blocks_without_a_difference_get_the_same() -> None:
    assert owl.sparsities([0.1, 0.1], [3, 4], 0.4, 0.08) == [0.4, 0.4]
    assert owl.sparsities([0.1, 0.2], [3, 4], 0.4, 0.0) == [0.4, 0.4]


@pytest.mark.parametrize("method", METHODS)
def test_without_spread_it_is_the_method_itself(tiny: Path, calibration: Path, method: Any) -> None:
    # 25 %: a whole number of each row, of each layer, and of each block of columns.
    statistics = Statistics(calibration)
    ours = load(tiny)
    owl.alter(ours, owl.Settings(sparsity=0.25, by=method, spread=0.0), Context(statistics))
    theirs = load(tiny)
    if method == "wanda":
        wanda.alter(theirs, wanda.Settings(sparsity=0.25), Context(statistics))
    elif method == "sparsegpt":
        sparsegpt.alter(theirs, sparsegpt.Settings(sparsity=0.25), Context(statistics))
    else:
        for linear in linears_of(theirs).values():
            order = linear.weight.detach().abs().flatten().argsort()
            linear.weight.data.view(-1)[order[: len(order) // 4]] = 0
    for name, linear in linears_of(ours).items():
        torch.testing.assert_close(linear.weight, linears_of(theirs)[name].weight)


def test_rows_differ_by_at_most_one_zero_and_the_lowest_go() -> None:
    scores: Tensor = torch.rand(7, 30, generator=torch.Generator().manual_seed(0))
    for count in (0, 6, 7, 100, 209):
        mask = owl.lowest_over_rows(scores, count)
        rows = mask.sum(1)
        assert int(rows.sum()) == count
        assert int(rows.max() - rows.min()) <= 1
        for row, gone in zip(scores, mask, strict=True):
            if gone.any() and not gone.all():
                assert row[gone].max() < row[~gone].min()


def test_a_model_in_bfloat16_and_a_whole_job(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    model = load(tiny, dtype="bfloat16")
    owl.alter(model, owl.Settings(sparsity=0.6), Context(Statistics(calibration)))
    spec = {
        "sweep": "s",
        "method": "owl",
        "settings": {"sparsity": 0.6, "by": "sparsegpt"},
        "seed": 0,
    }
    compress(tmp_path / "out", "v", tiny, None, calibration, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.6, abs=1e-4)


def test_settings_for_people_and_plan(tiny: Path) -> None:
    plain, other = owl.Settings(sparsity=0.7), owl.Settings(sparsity=0.7, by="sparsegpt", spread=0.15)
    assert (plain.label, plain.curve, plain.severity) == ("70 %, wanda", "wanda", 0.7)
    assert (other.label, other.curve) == ("70 %, sparsegpt, spread 0.15", "sparsegpt, spread 0.15")
    assert plain.statistics == ("activations",)
    assert plain.check(json.loads((tiny / "config.json").read_text())) is None
    with pytest.raises(ValueError, match="a share between 0 and 1, no pattern"):
        owl.Settings(sparsity="2:4")
    for wrong in ({"threshold": 0.0}, {"spread": 0.5}, {"spread": -0.1}, {"by": "gptq"}, {"alpha": 1}):
        with pytest.raises(ValueError, match=r"Input|permitted"):
            owl.Settings.model_validate({"sparsity": 0.5, **wrong})
