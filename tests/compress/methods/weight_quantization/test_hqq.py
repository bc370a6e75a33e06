"""HQQ against the formulas of its paper, weight by weight, and against round to nearest."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import hqq, rtn
from hemorrhage.compress.solvers.grid import group_width
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.linears import linears_of
from hemorrhage.models.weights import Weights
from tests.divergence import divergence


def literal(weight: Tensor, width: int, settings: hqq.Settings) -> tuple[list[list[int]], list[float]]:
    """The codes and the zero point of each group: the paper's formulas in Python's floats."""
    groups = [[float(w) for w in group] for group in weight.reshape(-1, width)]
    steps, p, beta, best = 2**settings.bits - 1, settings.p, settings.beta, math.inf
    s = [(max(group) - min(group)) / steps for group in groups]
    z = [-min(group) / scale for group, scale in zip(groups, s, strict=True)]

    def codes(i: int) -> list[int]:
        return [min(max(round(w / s[i] + z[i]), 0), steps) for w in groups[i]]

    for _ in range(settings.iterations):
        errors: list[float] = []
        for i, group in enumerate(groups):
            W_q = codes(i)
            residual = [w - s[i] * (q - z[i]) for w, q in zip(group, W_q, strict=True)]
            W_e = [math.copysign(max(abs(x) - abs(x) ** (p - 1) / beta, 0), x) if x else 0.0 for x in residual]
            z[i] = sum(q - (w - e) / s[i] for w, q, e in zip(group, W_q, W_e, strict=True)) / width
            errors += map(abs, residual)
        beta *= settings.kappa
        if sum(errors) >= best:
            break
        best = sum(errors)
    return [codes(i) for i in range(len(groups))], z


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("p", "spread"), [(0.7, 0.05), (0.7, 2.0), (0.4, 2.0), (1.0, 2.0)])
def test_codes_and_zero_points_are_those_of_the_formulas(bits: int, p: float, spread: float) -> None:
    # With a spread of 2 errors are so large that W_e is not zero.
    weight = spread * torch.randn(6, 32, generator=torch.Generator().manual_seed(bits))
    settings = hqq.Settings(bits=bits, group_size=16, p=p)
    W_q, z = literal(weight, 16, settings)
    ours = hqq.quantize(weight, 16, settings)
    half = 2 ** (bits - 1)
    assert ours.zero is not None
    torch.testing.assert_close(ours.zero.flatten() + half, torch.tensor(z), rtol=0, atol=1e-4)
    assert (ours.codes.int() + half).reshape(-1, 16).tolist() == W_q


def test_shrink_is_the_proximal_operator() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 0.2, 2.0])
    # p = 1 is the soft threshold 1 / β; below |x|^(2-p) = 1 / β nothing is left.
    assert hqq.shrink(x, 10.0, 1.0).tolist() == pytest.approx([-1.9, 0, 0, 0, 0.1, 1.9])
    assert hqq.shrink(x, 10.0, 0.5).tolist() == pytest.approx([-2 + 0.1 / 2**0.5, 0, 0, 0, 0, 2 - 0.1 / 2**0.5])


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("group_size", [4, "channel"])
def test_the_error_in_the_norm_is_below_that_of_rtn(tiny: Path, bits: int, group_size: int | str) -> None:
    settings = {"bits": bits, "group_size": group_size}
    ours, plain = hqq.Settings.model_validate(settings), rtn.Settings.model_validate(settings)
    error = plain_error = 0.0
    for name, linear in linears_of(load(tiny)).items():
        W = linear.weight.data
        width = group_width(name, linear.in_features, ours)
        error += (W - hqq.quantize(W, width, ours).dense()).abs().pow(ours.p).sum().item()
        plain_error += (W - rtn.quantize(W, width, plain, W.dtype).dense()).abs().pow(ours.p).sum().item()
    assert error < plain_error


def test_the_model_is_less_damaged_than_by_rtn(tiny: Path) -> None:
    base, tokens = load(tiny), torch.randint(500, (8, 48), generator=torch.Generator().manual_seed(0))
    damage = {}
    for method in (hqq, rtn):
        model = load(tiny)
        method.alter(model, method.Settings(bits=3, group_size=4), Context())
        damage[method] = divergence(base, model, tokens)
    assert damage[hqq] < damage[rtn]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_groups_that_are_all_alike_stay_what_they_are(dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.0] * 8, [0.3] * 8, [-7.0] * 8, [1e-3] * 7 + [1.001e-3]]).to(dtype)
    ours = hqq.quantize(weight, 8, hqq.Settings(bits=4, group_size=8))
    assert ours.zero is not None
    assert (ours.scale.dtype, ours.zero.dtype) == (dtype, dtype)
    assert ours.zero.isfinite().all()
    torch.testing.assert_close(ours.dense(), weight.float(), rtol=torch.finfo(dtype).eps, atol=0)


def test_what_is_stored_is_what_was_computed_with(tiny: Path, tmp_path: Path) -> None:
    settings = hqq.Settings(bits=3, group_size=4)
    spec = {"sweep": "hqq", "method": "hqq", "settings": settings.model_dump(), "seed": 0}
    compress(tmp_path / "out", "hqq-3", tiny, None, None, [], spec)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "failure" not in manifest, manifest
    stored = formatted_layers(load(tmp_path / "out", as_stored=True, base=tiny))
    linears = linears_of(load(tiny, "stored"))
    for name, linear in linears.items():
        expected = hqq.quantize(linear.weight.data, 4, settings).dense()
        assert torch.equal(stored[name].dense(), expected)
    # Float zero points are counted: the layers' bits are those of all of their tensors on disk.
    on_disk, layers = Weights(tmp_path / "out", tiny), tuple(f"{name}." for name in linears)
    tensors = [on_disk.tensor(name) for name in on_disk.names() if name.startswith(layers)]
    weights = sum(linear.weight.numel() for linear in linears.values())
    assert manifest["layer_bits"] == pytest.approx(sum(8 * tensor.nbytes for tensor in tensors) / weights)
    assert manifest["layer_bits"] > 3 + 2 * 32 / 4
