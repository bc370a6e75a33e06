"""Tests of sparsegpt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.methods.unstructured_pruning import sparsegpt, wanda
from hemorrhage.compress.solvers.sparsity import lowest, lowest_of_groups
from tests.compress.made import layer


def literal_sparsegpt(weight: Tensor, moment: Tensor, settings: sparsegpt.Settings) -> Tensor:
    """The paper's sweep with explicit inverses of what is left of H, float64."""
    W = weight.double().clone()
    H = moment.double() + settings.damp * moment.double().diagonal().mean() * torch.eye(len(moment))
    columns = W.shape[1]
    inverses = [torch.linalg.inv(H[j:, j:]) for j in range(columns)]
    step = settings.pattern[1] if settings.pattern else settings.block_size
    for j in range(columns):
        if j % step == 0:
            stop = min(j + step, columns)
            scores = W[:, j:stop].square() / torch.stack([inverses[i][0, 0] for i in range(j, stop)])
            drop = torch.zeros_like(scores, dtype=torch.bool)
            if settings.pattern:
                drop.scatter_(1, scores.argsort(1)[:, : step - settings.pattern[0]], True)
            else:
                drop.view(-1)[scores.flatten().argsort()[: round(settings.severity * scores.numel())]] = True
        q = torch.where(drop[:, j % step], 0, W[:, j])
        inverse = inverses[j]
        W[:, j:] -= ((W[:, j] - q) / inverse[0, 0])[:, None] * inverse[0][None]
        W[:, j] = q
    return W


@pytest.mark.parametrize(("sparsity", "block"), [(0.5, 128), (0.7, 16), (0.3, 20), ("2:4", 128), ("1:3", 16)])
def test_sparsegpt_is_its_definition(sparsity: float | str, block: int) -> None:
    weight, moment = layer(rows=10)
    settings = sparsegpt.Settings(sparsity=sparsity, block_size=block)
    (ours,) = sparsegpt.prune([weight], moment, settings)
    expected = literal_sparsegpt(weight, moment, settings)
    assert torch.equal(ours == 0, expected == 0)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


def test_sparsegpt_of_layers_that_share_an_input_is_that_of_each_alone() -> None:
    weight, moment = layer(rows=20)
    settings = sparsegpt.Settings(sparsity=0.5, block_size=16)
    together = sparsegpt.prune([weight[:5], weight[5:]], moment, settings)
    for part, rows in zip(together, (weight[:5], weight[5:]), strict=True):
        (alone,) = sparsegpt.prune([rows], moment, settings)
        assert torch.equal(part == 0, alone == 0)
        torch.testing.assert_close(part, alone)


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(sparsity: float | str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 48, generator=generator)
    scale = torch.rand(48, generator=generator) * 3
    x = (torch.randn(300, 48, generator=generator) @ torch.randn(48, 48, generator=generator)) * scale
    moment = x.T @ x / len(x)

    def loss(pruned: Tensor) -> float:
        return torch.trace((weight - pruned) @ moment @ (weight - pruned).T).item()

    settings = wanda.Settings(sparsity=sparsity)
    plain = (
        lowest_of_groups(weight.abs(), *settings.pattern)
        if settings.pattern
        else lowest(weight.abs(), settings.severity)
    )
    by_magnitude = loss(weight.masked_fill(plain, 0))
    by_wanda = loss(
        weight.masked_fill(wanda.mask(weight, moment.diagonal().sqrt(), wanda.Settings(sparsity=sparsity)), 0)
    )
    (updated,) = sparsegpt.prune([weight], moment, sparsegpt.Settings(sparsity=sparsity))
    assert loss(updated) < by_wanda < by_magnitude
