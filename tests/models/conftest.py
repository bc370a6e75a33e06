"""Fixtures of this folder's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hemorrhage.runtime.artifact import write_manifest
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in bfloat16, as a base step would leave it."""
    folder = tmp_path_factory.mktemp("base")
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": "bfloat16"}
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / "model.safetensors")
    write_manifest(folder, leading=[])
    return folder


@pytest.fixture(scope="module")
def calibration(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(base, tmp_path_factory.mktemp("calibration"))
