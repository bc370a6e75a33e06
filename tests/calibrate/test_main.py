"""The calibrate step: which windows it draws, and what it writes down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.windows import draw
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import SPEC, calibrated


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibrate"))


def test_manifest_says_what_was_done(calibration: Path) -> None:
    manifest = read_manifest(calibration)
    assert manifest["corpora"] == {"made": "ab"}
    assert manifest["spec"] == SPEC
    assert manifest["tokens"] == SPEC["samples"] * SPEC["length"]
    assert "not propagated" in manifest["note"]


def test_windows_of_several_texts_take_turns(tiny: Path, tmp_path: Path) -> None:
    texts = []
    for place, (corpus, first) in enumerate({"prose": 10, "code": 300}.items()):
        text = tmp_path / corpus
        text.mkdir()
        save_file({"calibration": torch.arange(first, first + 100, dtype=torch.int32)}, text / "tokens.safetensors")
        (text / "manifest.json").write_text(json.dumps({"corpus": corpus, "sha256": str(place)}))
        texts.append(text)
    calibrate(tmp_path / "out", tiny, texts, {**SPEC, "samples": 5, "max_hessian_gb": 0})
    tokens = load_file(tmp_path / "out/tokens.safetensors")["tokens"]
    assert (tokens[0::2] < 200).all()
    assert (tokens[1::2] >= 300).all()
    assert torch.equal(tokens[0::2], draw(torch.arange(10, 110, dtype=torch.int32), 3, 32, SPEC["seed"], []))
    assert read_manifest(tmp_path / "out")["corpora"] == {"prose": "0", "code": "1"}
