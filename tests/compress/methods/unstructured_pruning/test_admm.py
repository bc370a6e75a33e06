"""ADMM pruning against its paper's iteration in NumPy, and against least squares on the support that it finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.unstructured_pruning import admm, wanda
from tests.calibration import calibrated
from tests.compress.made import layer, spec

Floats = npt.NDArray[np.float64]


def ours(weight: Tensor, moment: Tensor, settings: admm.Settings) -> Tensor:
    H, norms = admm.scaled(moment, settings.damp)
    inverse = torch.linalg.inv(H + torch.eye(len(H)))
    return admm.prune(weight * norms, H, inverse, settings) / norms


def literal(weight: Tensor, moment: Tensor, settings: admm.Settings) -> Floats:
    """The iteration of the paper, weights [columns, rows] as there, in float64."""
    A: Floats = moment.double().numpy()
    norm = np.sqrt(np.diag(A)) + 1e-8
    A = A / np.outer(norm, norm)
    A = A + settings.damp * np.diag(A).mean() * np.eye(len(A))
    W = weight.double().numpy().T * norm[:, None]
    start, U = W.copy(), np.zeros_like(W)
    keep = np.ones_like(W, dtype=bool)
    for i in range(settings.turns):
        if i < settings.gradual:
            share = settings.severity - settings.severity * (1 - (i + 1) / settings.gradual) ** 3
            size = np.abs(W + U)
            if settings.pattern:
                kept, among = settings.pattern
                for row in range(size.shape[1]):
                    for first in range(0, len(size), among):
                        largest = first + np.argsort(size[first : first + among, row])[among - kept :]
                        size[largest, row] = np.inf
            order = np.argsort(size, axis=None)
            keep = np.ones(size.size, dtype=bool)
            keep[order[: round(share * size.size)]] = False
            keep = keep.reshape(size.shape)
        Z = (W + U) * keep
        U = U + (W - Z)
        W = np.linalg.inv(A + np.eye(len(A))) @ (A @ start + (Z - U))
    Q: Floats = ((W + U) * keep / norm[:, None]).T
    return Q


@pytest.mark.parametrize("sparsity", [0.4, 0.7, "2:4", "1:3"])
def test_the_weights_are_those_of_the_iteration(sparsity: float | str) -> None:
    weight, moment = layer(rows=11)
    settings = admm.Settings(sparsity=sparsity)
    Q = ours(weight, moment, settings)
    expected = literal(weight, moment, settings)
    assert np.array_equal(Q.numpy() != 0, expected != 0)
    np.testing.assert_allclose(Q.numpy(), expected, atol=2e-4)
    assert (Q == 0).float().mean().item() == pytest.approx(settings.severity, abs=0.001)


def test_many_iterations_end_at_least_squares_on_the_support() -> None:
    weight, moment = layer(rows=7, columns=24)
    settings = admm.Settings(sparsity=0.5, gradual=0, turns=3000)
    Q = ours(weight.double(), moment.double(), settings)
    H, norms = admm.scaled(moment.double(), settings.damp)
    for w, q in zip(weight.double() * norms, Q * norms, strict=True):
        kept = (q != 0).nonzero()[:, 0]
        best = torch.linalg.solve(H[kept][:, kept], H[kept] @ w)
        torch.testing.assert_close(q[kept], best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gradual", [0, 15])
def test_outputs_are_nearer_than_wandas(gradual: int) -> None:
    weight, moment = layer(rows=10)

    def error(changed: Tensor) -> float:
        change = changed - weight
        return ((change @ moment) * change).sum().item()

    norms = moment.diagonal().sqrt()
    pruned = weight.masked_fill(wanda.mask(weight, norms, wanda.Settings(sparsity=0.6)), 0)
    assert error(ours(weight, moment, admm.Settings(sparsity=0.6, gradual=gradual))) < 0.6 * error(pruned)


def test_inputs_that_are_always_zero() -> None:
    weight, moment = layer()
    moment[3], moment[:, 3] = 0, 0
    Q = ours(weight, moment, admm.Settings(sparsity=0.5))
    assert Q.isfinite().all()
    assert not Q[:, 3].any()


def test_a_mask_that_grows_too_long() -> None:
    with pytest.raises(ValidationError, match="gradual: the mask grows in 15 turns, and there are 3"):
        admm.Settings(sparsity=0.5, turns=3)


def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path) -> None:
    calibration = calibrated(odd, tmp_path)
    compress(tmp_path / "out", "admm", odd, None, calibration, [], spec("admm", sparsity=0.5))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert manifest["second_order"]
