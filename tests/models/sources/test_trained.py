"""A model of the train step as a base: its files alone, the last or one along the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.sources.trained import fetch
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from hemorrhage.train.__main__ import raise_model
from tests.train import made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the train step."""
    at = tmp_path_factory.mktemp("trained")
    raise_model(made.tokens(at), made.spec(keep=[1000]), at / "model")
    return at / "model"


def test_the_base_step_takes_it(folder: Path, tmp_path: Path) -> None:
    prepare({"source": "trained", "recipe": "small", "at": None}, tmp_path / "base", folder)
    manifest = read_manifest(tmp_path / "base")
    assert manifest["model"] == {"source": "trained", "recipe": "small", "at": None}
    assert "trained on 3,072 tokens; its held-out loss is" in manifest["note"]
    assert {entry["answer"] for entry in manifest["probe"]} == {"yes"}
    assert (tmp_path / "base/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (tmp_path / "base/curve.parquet").exists()


def test_a_model_along_the_way(folder: Path, tmp_path: Path) -> None:
    origin = fetch({"source": "trained", "recipe": "small", "at": 1000, "path": str(folder)}, tmp_path)
    kept = folder / "snapshots/1000"
    assert origin.note == "The base is a model that this pipeline trained, as it was after 1,000 of 3,072 tokens."
    assert (tmp_path / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()


def test_what_was_not_kept_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.at: the model was not kept after 7 tokens"):
        fetch({"source": "trained", "recipe": "small", "at": 7, "path": str(folder)}, tmp_path)
