"""A folder as the base model: what can't be one is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.sources import path


def folder_with(where: Path, config: dict[str, object], *files: str) -> Path:
    """A folder with that config.json and empty files."""
    where.mkdir()
    (where / "config.json").write_text(json.dumps(config))
    for name in files:
        (where / name).write_bytes(b"")
    return where


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ({}, ["pytorch_model.bin", "tokenizer.json"], "only pickled weights"),
        ({}, ["tokenizer.json"], r"no \*\.safetensors"),
        ({}, ["model.safetensors"], "no tokenizer"),
        ({"auto_map": {"AutoModel": "x.Y"}}, ["model.safetensors", "tokenizer.json"], "code of its own"),
        ({"quantization_config": {}}, ["model.safetensors", "tokenizer.json"], "quantized already"),
    ],
)
def test_folders_that_cannot_be_the_base_are_refused(
    tmp_path: Path, config: dict[str, object], files: list[str], reason: str
) -> None:
    folder = folder_with(tmp_path / "folder", config, *files)
    with pytest.raises(ValueError, match=rf"model\.path: .*{reason}"):
        prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_what_a_model_needs_is_copied_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    out.mkdir()
    for name in ("pytorch_model.bin", "modeling_own.py", "training.log"):
        (source / name).write_bytes(b"x")
    path.adopt(source, out)
    there = {file.name for file in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= there
    assert not there & {"pytorch_model.bin", "modeling_own.py", "training.log"}
    assert (out / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
