"""Hadamard rotations alone: the same function from disk in 16 bits, flat inputs, and methods on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.equivalent_transforms.hadamard import Settings
from hemorrhage.models.checkpoint import load
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.made import run, spec
from tests.divergence import kl
from tests.families import new_model
from tests.family_matrix.study import Study
from tests.layers import logits_of
from tests.whole import whole


@pytest.mark.parametrize("name", ["opt", "stablelm", "phi3", "mixtral"])
def test_families_in_16_bits_from_disk_compute_what_they_did(name: str, tmp_path: Path) -> None:
    study = Study(name, tmp_path)
    compress(tmp_path / "out", "v", study.base, None, None, [], spec("hadamard"))
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert manifest["equivalent_transform"] == "rotated"
    assert manifest["method_info"]["unchanged"]
    assert kl(study.logits, logits_of(load(tmp_path / "out", base=study.base), study.tokens, use_cache=False)) < 1e-3


def test_rounding_after_it_is_quarots(tiny: Path, tmp_path: Path) -> None:
    """The rotation method rounds the same matrices; in float32 nothing lies between the two steps."""
    grid = {"bits": 4, "group_size": 4}
    compress(tmp_path / "parent", "v", tiny, None, None, [], spec("hadamard"))
    compress(tmp_path / "two", "v", tiny, tmp_path / "parent", None, [], spec("rtn", **grid) | {"on": "parent"})
    quarot = spec("rotation", transform="quarot", **grid)
    compress(tmp_path / "one", "v", tiny, None, None, [], quarot)
    two, one = (load(tmp_path / name, base=tiny).state_dict() for name in ("two", "one"))
    assert set(two) == set(one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6, msg=name)


def test_gptq_on_it_reads_the_rotated_inputs(tiny: Path, tmp_path: Path) -> None:
    calibration, settings = calibrated(tiny, tmp_path), {"bits": 3, "group_size": 4}
    run(tmp_path / "parent", tiny, None, calibration, "hadamard", {})
    run(tmp_path / "on", tiny, tmp_path / "parent", calibration, "gptq", settings)
    alone = whole(tmp_path / "parent", tiny)
    run(tmp_path / "alone", alone, None, calibrated(alone, tmp_path / "again"), "gptq", settings)
    ours, theirs = Weights(tmp_path / "on", tiny), Weights(tmp_path / "alone", alone)
    assert set(ours.names()) == set(theirs.names())
    for name in ours.names():
        torch.testing.assert_close(ours.tensor(name), theirs.tensor(name), rtol=0, atol=0, msg=name)
    assert read_manifest(tmp_path / "on")["equivalent_transform"] == "rotated"


def test_settings() -> None:
    settings = Settings()
    assert (settings.axis, settings.severity, settings.label) == ("transform", 1.0, "R1 and R2")
    with pytest.raises(RefusedError, match="can't be turned"):
        settings.check_model(new_model("gemma2"))
