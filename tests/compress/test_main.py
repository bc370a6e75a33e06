"""Tests of main."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.stream import TensorFile
from hemorrhage.runtime.artifact import failure, read_manifest

SPEC = {"sweep": "s", "method": "magnitude", "settings": {"sparsity": 0.5}, "seed": 0}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# A full disk


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_leaves_nothing_and_the_next_run_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out = tmp_path / "v" / "address"
    with monkeypatch.context() as patched:
        patched.setattr(*{"write": (TensorFile, "write", full), "fsync": (os, "fsync", full)}[where])
        with pytest.raises(OSError, match="No space left"):
            compress(out, "v", tiny, None, None, [], SPEC)
    assert list(out.parent.iterdir()) == [], "no failure is recorded: the variant has none"
    compress(out, "v", tiny, None, None, [], SPEC)
    assert failure(out) is None


def test_the_manifest_of_every_output_has_checksums(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", tiny, None, None, [], SPEC)
    names = {file.name for file in (tmp_path / "v").iterdir()} - {"manifest.json"}
    assert set(read_manifest(tmp_path / "v")["checksums"]) == names


def test_a_repetition_with_another_calibration_set_is_no_variant_to_pick(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", tiny, None, None, [], {**SPEC, "calibration_seed": 1})
    manifest = read_manifest(tmp_path / "v")
    assert (manifest["redrawn"], manifest["is_control"]) == (True, True)
    assert manifest["label"] == "50 %, calibration seed 1"


@pytest.mark.parametrize(("sparsity", "gain"), [(0.5, "no engine today stores"), ("2:4", "semi-structured kernels")])
def test_what_a_mask_gains_is_what_an_engine_makes_of_it(
    tiny: Path, tmp_path: Path, sparsity: float | str, gain: str
) -> None:
    spec = {"sweep": "s", "method": "magnitude", "settings": {"sparsity": sparsity}, "seed": 0}
    compress(tmp_path / "v", "v", tiny, None, None, [], spec)
    assert gain in read_manifest(tmp_path / "v")["theoretical"]
