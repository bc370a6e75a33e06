"""Tests of size."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.compress.made import spec
from tests.whole import whole


def test_size_counts_everything(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=3, group_size=4))
    manifest = read_manifest(out)
    stored = sum(8 * t.numel() * t.element_size() for t in dict(Weights(out, tiny).items()).values())
    base = load_file(tiny / "model.safetensors")
    parameters = sum(t.numel() for t in base.values())
    assert manifest["parameters"] == parameters
    assert manifest["effective_bits"] == pytest.approx(stored / parameters)
    expected = stored / sum(8 * t.numel() * t.element_size() for t in base.values())
    assert manifest["size_ratio"] == pytest.approx(expected)
    assert manifest["disk_bytes"] == pytest.approx((whole(out, tiny) / "model.safetensors").stat().st_size, rel=0.01)
    # Codes, float32 scales and 3-bit zero points for groups of 4.
    linear = sum(module.weight.numel() for module in linears_of(load(tiny)).values())
    assert stored >= linear * (3 + 32 / 4 + 3 / 4) + 32 * (parameters - linear)
