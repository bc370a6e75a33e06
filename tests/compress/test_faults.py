"""A full disk, a lost network, a GPU without memory: nothing half made stays, and running again goes on."""

from __future__ import annotations

import errno
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors import SafetensorError

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Method
from hemorrhage.compress.methods.unstructured_pruning import magnitude
from hemorrhage.evaluate import __main__ as evaluation
from hemorrhage.models.sources import hub, origin
from hemorrhage.runtime import network
from hemorrhage.runtime.artifact import disk_is_full, failure, failure_recorded, writing
from hemorrhage.study import __main__ as commands
from hemorrhage.study.family import Family
from hemorrhage.study.outputs import invalidate, list_failures
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT

SPEC = {"sweep": "s", "method": "magnitude", "settings": {"sparsity": 0.5}, "seed": 0}


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    def step() -> None:
        with failure_recorded(tmp_path / "out", variant="v"), writing(tmp_path / "out") as part:
            (part / "weights").symlink_to("/dev/full")
            (part / "weights").write_text("half")

    with pytest.raises(OSError, match="No space left"):
        step()
    assert list(tmp_path.iterdir()) == []


def test_what_libraries_say_of_a_full_disk_is_understood() -> None:
    assert disk_is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    wrapped = ValueError("can't be loaded")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_is_full(wrapped)
    assert not disk_is_full(OSError(errno.ENOENT, "no such file"))
    assert not disk_is_full(ValueError("singular"))


# A lost network


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_a_download_that_breaks_in_the_middle_is_tried_again_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def broken(repository: str, revision: str, folder: Path, names: object) -> str:
        (folder / "model.safetensors").write_bytes(b"half")
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    monkeypatch.setattr(hub, "download", broken)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec: origin.Spec = {"source": "hub", "id": "org/model", "revision": "0" * 40}

    def step() -> None:
        with writing(tmp_path / "base" / "address") as part:
            hub.fetch(spec, part)

    with pytest.raises(ConnectionError, match=r"org/model could not be fetched \(RemoteProtocolError: peer closed"):
        step()
    assert pauses == list(network.PAUSES)
    assert list((tmp_path / "base").iterdir()) == []


def test_a_network_that_comes_back_is_waited_for_and_a_wrong_name_is_not(pauses: list[float]) -> None:
    answers: list[Any] = [ConnectionResetError("reset"), TimeoutError("slow"), "data"]

    def fetch() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert network.fetch_persistently("text", fetch) == "data"
    assert pauses == list(network.PAUSES[:2])
    response = httpx.Response(404, request=httpx.Request("GET", "https://example.org"))
    answers[:] = [httpx.HTTPStatusError("404", request=response.request, response=response)]
    with pytest.raises(httpx.HTTPStatusError):
        network.fetch_persistently("text", fetch)
    assert network.lost(httpx.HTTPStatusError("", request=response.request, response=httpx.Response(503)))


def test_data_sets_of_the_hub_are_asked_for_again(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(repository: str, config: str | None = None, **options: Any) -> str:
        asked.append((repository, config, options))
        if len(asked) == 1:
            raise httpx.ConnectError("no route to host")
        return "table"

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert network.dataset("org/set", "main", "test", "0" * 40) == "table"
    assert pauses == [network.PAUSES[0]]
    assert asked == [("org/set", "main", {"split": "test", "revision": "0" * 40})] * 2
    network.dataset("org/set", None, "train", "1" * 40, files="en/part-0.parquet")
    files = {"data_files": {"train": "en/part-0.parquet"}}
    assert asked[-1] == ("org/set", None, {"split": "train", "revision": "1" * 40, **files})


# A GPU without memory


def test_a_variant_that_does_not_fit_is_recorded_and_the_others_finish(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alter(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(magnitude, "METHOD", Method(magnitude.METHOD.info, magnitude.Settings, alter))
        compress(tmp_path / "large", "large", tiny, None, None, [], SPEC)
    compress(tmp_path / "small", "small", tiny, None, None, [], SPEC)
    assert failure(tmp_path / "large") == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert [file.name for file in (tmp_path / "large").iterdir()] == ["manifest.json"]
    assert failure(tmp_path / "small") is None

    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluation, "load", load)
    with pytest.raises(ValueError, match=r"can't be loaded: OutOfMemoryError: CUDA out of memory"):
        evaluation.open_model(tmp_path / "small", tiny, 512)


def test_a_run_with_failed_variants_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert commands.main(["failed"]) == 0
    assert not capsys.readouterr().err
    for kind, reason in (("checkpoints", "OutOfMemoryError: CUDA"), ("evaluations", "ValueError: not made")):
        manifest = Path(Plan.read().manifest(kind, "rtn-4"))
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"failure": reason}))
    assert commands.main(["failed"]) == 1
    reason, advice = capsys.readouterr().err.splitlines()
    assert reason == "rtn-4 failed: OutOfMemoryError: CUDA"
    assert re.search(r"1 of \d+ models failed.* hemorrhage invalidate rtn-4$", advice)
    invalidate(Family.read(), ["rtn-4"])
    assert list_failures(Family.read()) == {}
