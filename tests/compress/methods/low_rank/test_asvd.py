"""ASVD against NumPy's singular values of the scaled matrix, and its search against trying by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.low_rank import asvd
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.low_rank import LowRankLinear
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from tests.calibration import calibrated
from tests.compress.made import spec


@pytest.mark.parametrize("shape", [(6, 11), (11, 6)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_cut_is_that_of_the_scaled_matrix(shape: tuple[int, int], alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=generator)
    s = torch.rand(shape[1], generator=generator) ** alpha + 1e-6
    inner, outer = asvd.cut(W, s, 3)
    U, S, Vh = np.linalg.svd(W.double().numpy() * s.double().numpy(), full_matrices=False)
    expected = (U[:, :3] * S[:3]) @ Vh[:3] / s.double().numpy()
    np.testing.assert_allclose((outer @ inner).numpy(), expected, atol=1e-4)
    # A smaller rank's vectors are the last ones.
    fewer = (U[:, :2] * S[:2]) @ Vh[:2] / s.double().numpy()
    np.testing.assert_allclose((outer[:, -2:] @ inner[-2:]).numpy(), fewer, atol=1e-4)


def test_scales_are_of_the_inputs(tiny: Path, tmp_path: Path) -> None:
    statistics = Statistics(calibrated(tiny, tmp_path))
    first = next(iter(statistics.shared()))
    for scale, sizes in (("mean", statistics.mean_abs(first)), ("max", statistics.max_abs(first))):
        settings = asvd.Settings.model_validate({"removed": 0.2, "scale": scale, "alpha": 0.3})
        assert torch.equal(asvd.scale(statistics, first, settings), sizes**0.3 + 1e-6)


def test_ranks_are_those_of_the_binary_search() -> None:
    # The authors' program: of cuts from the most harmful on, those from a place on, the smallest of each layer.
    weights = {"a": 100, "b": 200, "c": 50}
    generator = torch.Generator().manual_seed(4)
    losses = {(name, share): torch.rand((), generator=generator).item() for name in weights for share in asvd.RATIOS}
    order = sorted(losses, key=lambda cut: -losses[cut])

    def kept(place: int) -> dict[str, float]:
        return {name: min([1.0, *(s for n, s in order[place:] if n == name)]) for name in weights}

    for removed in (0.05, 0.1, 0.3, 0.5, 0.6):
        gone = [sum(weights[n] * (1 - s) for n, s in kept(place).items()) / 350 for place in range(len(order))]
        place = max(place for place, share in enumerate(gone) if share >= removed - 1e-9)
        chosen = asvd.choose(losses, weights, removed)
        assert {name: chosen.get(name, 1.0) for name in weights} == pytest.approx(kept(place))


def test_losses_are_those_of_the_model_with_one_layer_cut(tiny: Path, tmp_path: Path) -> None:
    statistics = Statistics(calibrated(tiny, tmp_path))
    model, settings = load(tiny), asvd.Settings(removed=0.2)
    tokens = statistics.tokens()[:2]
    scales = {
        name: asvd.scale(statistics, first, settings) for first, names in statistics.shared().items() for name in names
    }
    losses = asvd.search(model, scales, tokens)
    linears = linears_of(model)
    assert len(losses) == len(linears) * len(asvd.RATIOS)
    for name, share in (("model.layers.0.mlp.up_proj", 0.4), ("model.layers.3.self_attn.q_proj", 0.9)):
        linear = linears[name]
        whole = linear.weight.data
        rank = round(share * whole.numel() / sum(whole.shape))
        inner, outer = asvd.cut(whole, scales[name], rank)
        linear.weight.data = outer @ inner
        with torch.no_grad():
            expected = model(tokens, labels=tokens).loss.item()
        linear.weight.data = whole
        assert losses[name, share] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{"samples": 2}, {"ranks": "uniform"}])
def test_a_bfloat16_model_of_odd_widths_through_the_step(
    odd: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    calibration = calibrated(odd, tmp_path)
    compress(tmp_path / "out", "v", odd, None, calibration, [], spec("asvd", removed=0.3, **settings))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    model = load(tmp_path / "out", base=odd)
    verify(model, tmp_path / "out")
    cuts = {name for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    assert cuts == set(manifest["kept"])
    # A cut's ratios are tenths of small layers, and ranks are whole.
    assert 0.25 < manifest["severity"] < 0.4


def test_a_share_that_no_search_reaches() -> None:
    with pytest.raises(ValidationError, match=r"searched ranks take away 0\.6 at most, uniform ones 0\.7"):
        asvd.Settings(removed=0.7)
