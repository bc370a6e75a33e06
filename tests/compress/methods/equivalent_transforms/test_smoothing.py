"""Smoothing alone: its formula, the same function from disk in 16 bits, and methods on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.equivalent_transforms.smoothing import Settings
from hemorrhage.models.checkpoint import load
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.made import run, spec
from tests.divergence import kl
from tests.family_matrix.study import Study
from tests.layers import block_of, logits_of
from tests.whole import whole


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("smoothing"))


def made(out: Path, tiny: Path, parent: Path | None, calibration: Path, method: str, **settings: Any) -> dict[str, Any]:
    run(out, tiny, parent, calibration, method, settings)
    manifest = dict(read_manifest(out))
    assert "failure" not in manifest, manifest["failure"]
    return manifest


def test_the_factors_are_the_papers(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    made(tmp_path / "out", tiny, None, calibration, "smoothing", alpha=0.8)
    before, after = load(tiny), load(tmp_path / "out", base=tiny)
    mlp = block_of(before, 1).mlp
    seen: list[torch.Tensor] = []
    mlp.up_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        before(Statistics(calibration).tokens())
    largest = torch.cat(seen).flatten(0, -2).abs().amax(0)
    heaviest = torch.maximum(mlp.gate_proj.weight.abs().amax(0), mlp.up_proj.weight.abs().amax(0)).detach()
    s = largest**0.8 / heaviest**0.2
    smooth = block_of(after, 1)
    torch.testing.assert_close(
        smooth.post_attention_layernorm.weight,
        block_of(before, 1).post_attention_layernorm.weight / s,
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(smooth.mlp.up_proj.weight, mlp.up_proj.weight * s, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["qwen2", "opt", "mixtral", "phi3"])
def test_families_in_16_bits_from_disk_compute_what_they_did(name: str, tmp_path: Path) -> None:
    study = Study(name, tmp_path)
    compress(tmp_path / "out", "v", study.base, None, study.calibration, [], spec("smoothing", alpha=0.5))
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert manifest["equivalent_transform"] == "scaled"
    assert manifest["method_info"]["unchanged"]
    assert kl(study.logits, logits_of(load(tmp_path / "out", base=study.base), study.tokens, use_cache=False)) < 1e-4


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gptq", {"bits": 8, "group_size": "channel", "inputs": "int8_token"}),
        ("rtn", {"bits": 8, "group_size": "channel", "inputs": "int8_static"}),
        ("awq", {"bits": 4, "group_size": 4}),
    ],
)
def test_a_method_on_it_is_as_on_a_base_with_its_weights(
    tiny: Path, calibration: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    """The statistics are the smoothed model's: as if that had been the base, and calibrated."""
    parent = tmp_path / "parent"
    made(parent, tiny, None, calibration, "smoothing", alpha=0.8)
    manifest = made(tmp_path / "on", tiny, parent, calibration, method, **settings)
    assert manifest["curve"].endswith("on parent")
    alone = whole(parent, tiny)
    made(tmp_path / "alone", alone, None, calibrated(alone, tmp_path / "again"), method, **settings)
    ours, theirs = Weights(tmp_path / "on", tiny), Weights(tmp_path / "alone", alone)
    assert set(ours.names()) == set(theirs.names())
    for name in ours.names():
        torch.testing.assert_close(ours.tensor(name), theirs.tensor(name), rtol=0, atol=0, msg=name)


def test_the_control_has_the_same_factors_elsewhere(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    for shuffled in (False, True):
        made(tmp_path / str(shuffled), tiny, None, calibration, "smoothing", alpha=0.8, shuffled=shuffled)
    norm = "model.layers.0.input_layernorm.weight"
    base, true, control = (
        Weights(folder, tiny).tensor(norm) for folder in (tiny, tmp_path / "False", tmp_path / "True")
    )
    assert not torch.equal(true, control)
    torch.testing.assert_close((base / true).sort().values, (base / control).sort().values)


def test_settings() -> None:
    settings = Settings(alpha=0.8)
    assert (settings.axis, settings.severity, settings.label) == ("transform", 0.8, "smoothed 0.8")
    assert settings.shuffled_control is not None
    assert settings.shuffled_control.is_control
