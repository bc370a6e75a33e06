"""A model of the hub at a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.sources import hub, path
from hemorrhage.runtime.artifact import read_manifest
from tests.models.sources.test_path import folder_with

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_hub_takes_what_the_pinned_download_brings(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        path.adopt(tiny, Path(str(options["local_dir"])))
        return str(options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = {"source": "hub", "id": "some/model", "revision": COMMIT}
    prepare(spec, tmp_path / "base")
    assert asked == [("some/model", COMMIT, list(path.WANTED))]
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in path.WANTED)
    assert read_manifest(tmp_path / "base")["model"] == spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_hub_refuses_branches_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"model\.revision: 'main' is no commit"):
        prepare({"source": "hub", "id": "some/model", "revision": "main"}, tmp_path / "base")

    def pickles(repository: str, revision: str, folder: Path) -> str:
        return str(folder_with(folder / "snapshot", {}, "pytorch_model.bin", "tokenizer.json"))

    monkeypatch.setattr(hub, "download", pickles)
    with pytest.raises(ValueError, match=r"model\.id: some/model holds only pickled weights"):
        prepare({"source": "hub", "id": "some/model", "revision": COMMIT}, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []
