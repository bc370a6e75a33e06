"""RIA against the formulas of its paper, weight by weight, and its order of columns against sorting and trying."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.unstructured_pruning import ria, wanda
from hemorrhage.compress.solvers.sparsity import lowest_of_groups
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated
from tests.compress.made import layer, spec


def literal(weight: Tensor, norms: list[float], power: float) -> list[list[float]]:
    """The score of each weight, in Python's floats."""
    W = [[abs(float(w)) for w in row] for row in weight]
    columns = [sum(row[j] for row in W) for j in range(len(norms))]
    return [[(w / columns[j] + w / sum(row)) * norms[j] ** power for j, w in enumerate(row)] for row in W]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, "2:4", "1:3"])
def test_the_mask_is_that_of_the_formula(sparsity: float | str, dtype: torch.dtype) -> None:
    weight, moment = layer(rows=11)
    weight, norms = weight.to(dtype), moment.diagonal().sqrt()
    settings = ria.Settings(sparsity=sparsity)
    S = literal(weight, norms.tolist(), 0.5)
    expected = torch.zeros(weight.shape, dtype=torch.bool)
    if settings.pattern:
        kept, among = settings.pattern
        for i, start in itertools.product(range(len(S)), range(0, len(norms), among)):
            group = sorted(range(start, start + among), key=lambda j: S[i][j])
            expected[i, group[: among - kept]] = True
    else:
        places = sorted(itertools.product(range(len(S)), range(len(norms))), key=lambda at: S[at[0]][at[1]])
        for i, j in places[: round(settings.severity * weight.numel())]:
            expected[i, j] = True
    assert torch.equal(ria.mask(weight, norms, settings), expected)


def test_with_shares_of_one_power_and_equal_rows_and_columns_it_is_wanda() -> None:
    # Every row and every column of a circulant matrix has the same sum.
    row = torch.rand(8, generator=torch.Generator().manual_seed(0))
    W = torch.stack([row.roll(shift) for shift in range(8)])
    norms = torch.linspace(1, 2, 8)
    of_ria = ria.mask(W, norms, ria.Settings(sparsity="2:4", power=1))
    assert torch.equal(of_ria, wanda.mask(W, norms, wanda.Settings(sparsity="2:4")))


def test_zeros_have_no_score() -> None:
    S = ria.score(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.ones(2), 0.5)
    assert S.tolist() == [[0, 0], [0, 2]]


def retained(S: Tensor, kept: int, among: int) -> float:
    return S.masked_fill(lowest_of_groups(S, kept, among), 0).sum().item()


def test_columns_are_dealt_out_back_and_forth() -> None:
    S = torch.tensor([[5.0, 3, 8, 1, 7, 2, 6, 4]])
    # By size: 3 5 | 1 7 back, 0 6 | 4 2 back.
    assert ria.allocate(S, 4).tolist() == [[3, 7, 0, 2], [5, 1, 6, 4]]


@pytest.mark.parametrize(("kept", "among"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_what_a_group_keeps_of_another_column_is_found_by_sorting(kept: int, among: int) -> None:
    S = torch.rand(9, 12, generator=torch.Generator().manual_seed(kept)) ** 3
    groups = ria.allocate(S, among)
    for place in range(among):
        chosen = ria.assign(S, groups, place, kept)
        assert chosen.sort().values.tolist() == list(range(len(groups)))

        def keeps(assigned: tuple[int, ...], place: int = place) -> float:
            changed = groups.clone()
            changed[:, place] = groups[list(assigned), place]
            return retained(S[:, changed.flatten()], kept, among)

        best = max(map(keeps, itertools.permutations(range(len(groups)))))
        assert keeps(tuple(chosen.tolist())) == pytest.approx(best)


def test_a_permuted_pattern_keeps_more_and_at_most_the_best() -> None:
    S = torch.rand(16, 8, generator=torch.Generator().manual_seed(3)) ** 4
    order = ria.permutation(S, 2, 4)
    assert order.sort().values.tolist() == list(range(8))
    every = [
        retained(S[:, [*first, *(j for j in range(8) if j not in first)]], 2, 4)
        for first in itertools.combinations(range(8), 4)
    ]
    assert retained(S, 2, 4) < retained(S[:, order], 2, 4) <= max(every) + 1e-5


def test_a_share_has_nothing_to_permute() -> None:
    with pytest.raises(ValidationError, match="permute: columns are permuted for a pattern"):
        ria.Settings(sparsity=0.5, permute=True)


def test_through_the_step_weights_stay_where_they_were(tiny: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    compress(tmp_path / "out", "ria", tiny, None, calibration, [], spec("ria", sparsity="2:4", permute=True))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)
    base = {name: module.weight for name, module in linears_of(load(tiny)).items()}
    neighbours = 0
    for name, module in linears_of(load(tmp_path / "out", base=tiny)).items():
        kept = module.weight != 0
        assert torch.equal(module.weight[kept], base[name][kept])
        neighbours += int((module.weight.unflatten(1, (-1, 4)).count_nonzero(dim=2) > 2).sum())
    assert neighbours
