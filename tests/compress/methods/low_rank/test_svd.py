"""Low rank: the cut is the best of its rank, in the metric that was asked for, and reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.low_rank import svd
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify
from tests.calibration import calibrated


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_plain_cut_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inner, outer = svd.factors(W, None, 3, 0.01)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    torch.testing.assert_close(outer @ inner, (U[:, :3] * S[:3] @ Vh[:3]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_whitened_cut_loses_what_the_literal_one_loses(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(shape, generator=generator).double()
    X = torch.randn(shape[1], 200, generator=generator).double() * torch.rand(shape[1], 1, generator=generator) ** 3
    H = X @ X.T / 200
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(shape[1])
    S = torch.linalg.cholesky(damped)
    U, s, Vh = torch.linalg.svd(W @ S, full_matrices=False)
    literal = (U[:, :3] * s[:3]) @ Vh[:3] @ torch.linalg.inv(S)
    inner, outer = svd.factors(W.float(), H.float(), 3, 0.01)
    torch.testing.assert_close((outer @ inner).double(), literal, atol=1e-4, rtol=0)
    plain = torch.mm(*reversed(svd.factors(W.float(), None, 3, 0.01)))
    assert ((W - literal) @ X).norm() < ((W - plain) @ X).norm()


def test_the_rank_keeps_the_share_of_weights() -> None:
    for removed in (0.1, 0.3, 0.6):
        kept = svd.rank(576, 1536, removed)
        assert kept * (576 + 1536) / (576 * 1536) == pytest.approx(1 - removed, abs=0.002)


def test_share_out_of_range() -> None:
    with pytest.raises(ValidationError):
        svd.Settings(removed=1.0)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_checkpoint_of_factors_reads_back(tiny: Path, tmp_path: Path, whiten: bool) -> None:
    calibration = calibrated(tiny, tmp_path)
    spec = {"sweep": "svd", "method": "svd", "seed": 0}
    spec["settings"] = {"removed": 0.3, "whiten": whiten}
    out = tmp_path / "out"
    compress(out, "svd-0.3", tiny, None, calibration, [], spec)
    manifest = json.loads((out / "manifest.json").read_text())
    assert "failure" not in manifest
    assert manifest["layer_bits"] == 32
    verify(load(out, base=tiny), out)
    base = sum(p.numel() for p in load(tiny).model.layers.parameters() if p.dim() == 2)
    factored = sum(p.numel() for p in load(out, base=tiny).model.layers.parameters() if p.dim() == 2)
    assert factored / base == pytest.approx(0.7, abs=0.01)
