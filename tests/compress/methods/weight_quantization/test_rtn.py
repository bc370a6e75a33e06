"""Tests of rtn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.grid import GridSettings
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.made import layer, spec


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("quantize"))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [4, 16, 48])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_is_bit_for_bit_that_of_compressed_tensors(bits: int, width: int, symmetric: bool) -> None:
    weight, _ = layer()
    weight[0, :width] = weight[0, :width].abs() + 1  # a group without negative weights
    weight[1, :width] = 0
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=width)
    groups = weight.unflatten(1, (-1, width))
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
    expected = fake_quantize(weight, scale, zero, args)
    settings = GridSettings(bits=bits, group_size=width, symmetric=symmetric)
    ours = rtn.quantize(weight, width, settings, torch.float32)
    assert torch.equal(ours.dense(), expected)
    assert torch.equal(ours.scale, scale)


def test_rtn_is_within_half_a_step_of_the_weights() -> None:
    weight, _ = layer()
    ours = rtn.quantize(weight, 16, GridSettings(bits=5, group_size=16), torch.float32)
    step = ours.scale.repeat_interleave(16, 1)
    # The zero point is rounded too, so the ends of the range may lie half a step outside.
    assert ((weight - ours.dense()).abs() <= step * (1 + 1e-5)).all()
    assert ((weight - ours.dense()).abs() <= step * (0.5 + 1e-5)).float().mean() > 0.97


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_is_packed_as_named_and_reads_back(tiny: Path, tmp_path: Path, bits: int) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=bits, group_size=4, symmetric=bits % 2 == 0))
    verify(load(out, base=tiny), out)
    tensors = dict(Weights(out, tiny).items())
    down = tensors["model.layers.0.mlp.down_proj.weight_packed"]
    assert down.shape == (64, math.ceil(172 * bits / 32))
    assert not any(name.endswith("proj.weight") for name in tensors)
    assert ("model.layers.0.mlp.down_proj.weight_zero_point" in tensors) == (bits % 2 == 1)


def test_eight_bits_hurt_less_than_two(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    tokens = torch.randint(500, (2, 32), generator=torch.Generator().manual_seed(0))
    base = load(tiny)
    divergence = {}
    with torch.no_grad():
        reference = base(tokens).logits.log_softmax(-1)
        for method in ("rtn", "gptq"):
            for bits in (2, 8):
                out = tmp_path / f"{method}{bits}"
                compress(out, "v", tiny, None, calibration, [], spec(method, bits=bits, group_size=4))
                other = load(out, base=tiny)(tokens).logits.log_softmax(-1)
                divergence[method, bits] = (reference.exp() * (reference - other)).sum(-1).mean().item()
    for method in ("rtn", "gptq"):
        assert -1e-6 < divergence[method, 8] < 1e-3
        assert divergence[method, 2] > 20 * divergence[method, 8]


def test_a_group_that_divides_no_width_is_refused_before_and_recorded_after(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    settings = rtn.Settings(bits=4, group_size=64)
    assert settings.check(config) == "group_size 64 does not divide the model's intermediate_size of 172"
    assert rtn.Settings(bits=4, group_size=4).check(config) is None
    assert rtn.Settings(bits=4, group_size="channel").check(config) is None
    compress(tmp_path / "out", "v", tiny, None, None, [], spec("rtn", bits=4, group_size=64))
    manifest = read_manifest(tmp_path / "out")
    assert "group_size 64 does not divide the model's intermediate_size of 172" in manifest["failure"]
    assert manifest["variant"] == "v"


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"bits": 4, "group_size": 0}, {"bits": 4, "damp": 2}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        gptq.Settings.model_validate(wrong)


def test_labels() -> None:
    settings = gptq.Settings(bits=4, group_size=64)
    assert settings.label == "4 bit, groups of 64"
    assert settings.curve == "groups of 64"
    assert settings.severity == 4.0
    assert settings.statistics == ("hessian",)
    longer = gptq.Settings(bits=4, group_size=64, act_order=True, sequential=True, keep_zeros=True)
    assert longer.curve == "groups of 64, zeros kept, act order, sequential"
    assert rtn.Settings(bits=4, group_size="channel", symmetric=True).label == "4 bit, per channel, symmetric"
    assert rtn.Settings(bits=4).statistics == ()
