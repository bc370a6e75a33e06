"""What the hub is asked for: settings first, weights by name, nothing where the settings rule the model out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.sources import hub
from hemorrhage.models.sources.files import INDEX, NAMES, WEIGHTS
from hemorrhage.models.sources.origin import Spec
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from tests.models.sources.folders import folder_with, llama, settings, sharded

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC: Spec = {"source": "hub", "id": "some/model", "revision": COMMIT}


class Hub:
    """A repository with the files of a folder; notes what is downloaded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[str] = []
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(hub, "download", self.download)

    def download(self, repository: str, revision: str, folder: Path, names: Sequence[str]) -> str:
        for name in names:
            if (self.folder / name).exists():
                self.asked.append(name)
                shutil.copy(self.folder / name, folder / name)
        return str(folder)


@pytest.fixture
def repository(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(llama(tiny, tmp_path / "repository"), monkeypatch)


def test_the_weights_that_the_index_names_are_downloaded(repository: Hub, tmp_path: Path) -> None:
    sharded(repository.folder)
    (repository.folder / "consolidated.safetensors").write_bytes(b"x")
    prepare(SPEC, tmp_path / "base")
    assert repository.asked[-2:] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert "consolidated.safetensors" not in repository.asked
    assert read_manifest(tmp_path / "base")["note"] == "The base is a model of the Hugging Face hub."


def test_what_the_settings_rule_out_downloads_no_weights(repository: Hub, tmp_path: Path) -> None:
    settings(repository.folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(InputError, match=r"model\.id: some/model is quantized already"):
        prepare(SPEC, tmp_path / "base")
    assert not any(name.endswith(".safetensors") for name in repository.asked)


def test_the_line_names_the_repository_and_not_where_it_was_put(repository: Hub, tmp_path: Path) -> None:
    settings(repository.folder / "config.json", num_hidden_layers=2)
    with pytest.raises(InputError) as error:
        prepare(SPEC, tmp_path / "base")
    assert str(error.value).startswith("model.id: some/model has model.layers.2.input_layernorm.weight and 12 more")
    (repository.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"^model\.id: some/model/model\.safetensors is empty$"):
        prepare(SPEC, tmp_path / "base")


def test_a_repository_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = httpx.Request("GET", "https://example.org/some/model")

    def absent(*_: object) -> str:
        raise RepositoryNotFoundError(
            "404 Client Error.\n\nRepository Not Found for url: x\nPlease make sure.",
            response=httpx.Response(404, request=request),
        )

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "download", absent)
    with pytest.raises(InputError) as error:
        prepare(SPEC, tmp_path / "base")
    line = "model.id: some/model at 01234567 can't be downloaded: RepositoryNotFoundError: 404 Client Error."
    assert str(error.value) == line


def test_hub_takes_what_the_pinned_download_brings(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        shutil.copytree(tiny, str(options["local_dir"]), dirs_exist_ok=True)
        return str(options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec: Spec = {"source": "hub", "id": "some/model", "revision": COMMIT}
    prepare(spec, tmp_path / "base")
    assert asked == [("some/model", COMMIT, [*NAMES, INDEX]), ("some/model", COMMIT, [WEIGHTS])]
    assert not any(name.endswith((".bin", ".py", ".pt")) for name in NAMES)
    assert read_manifest(tmp_path / "base")["model"] == spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_hub_refuses_branches_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"model\.revision: 'main' is not a commit hash"):
        prepare({"source": "hub", "id": "some/model", "revision": "main"}, tmp_path / "base")

    def pickles(repository: str, revision: str, folder: Path, names: object) -> str:
        return str(folder_with(folder / "snapshot", {}, "pytorch_model.bin", "tokenizer.json"))

    monkeypatch.setattr(hub, "download", pickles)
    with pytest.raises(ValueError, match=r"model\.id: some/model holds only pickled weights"):
        prepare({"source": "hub", "id": "some/model", "revision": COMMIT}, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []
