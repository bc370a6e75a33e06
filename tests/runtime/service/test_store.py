"""Experiments share what they computed, by address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.runtime.service import store

STEP = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[1])
with open("ran", "a") as file:
    file.write("x")
time.sleep(float(sys.argv[2]))
out.mkdir(parents=True)
(out / "weights").write_text("w")
(out / "manifest.json").write_text(json.dumps(json.loads(sys.argv[3])))
sys.exit(int(sys.argv[4]))
"""
OUT = "data/checkpoints/rtn-4/0123456789ab"


def experiment(
    folder: Path, seconds: float = 0, manifest: dict[str, str] | None = None, status: int = 0
) -> subprocess.Popen[bytes]:
    """A job of the run in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.py").write_text(STEP)
    words = ["made", OUT, str(seconds), json.dumps(manifest or {}), str(status)]
    return subprocess.Popen(
        [sys.executable, "-m", "hemorrhage.runtime.service.job", "usage.tsv", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{Path(store.__file__).parents[2]}:{folder}"},
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


def temporary(project: Path, name: str) -> Path:
    return project / ".dvc/tmp/exps/standalone" / name


def test_the_next_experiment_links_what_one_made(project: Path) -> None:
    first, second = temporary(project, "a"), temporary(project, "b")
    assert experiment(first).wait() == 0
    # As Snakemake does before a job begins.
    (second / OUT).mkdir(parents=True)
    assert experiment(second).wait() == 0
    assert not (second / "ran").exists()
    assert not (second / "usage.tsv").exists(), "nothing was measured"
    assert (second / OUT / "weights").samefile(first / OUT / "weights")
    assert (project / ".snakemake/shared/checkpoints/rtn-4/0123456789ab/manifest.json").is_file()


def test_of_two_at_once_one_waits_for_the_other(project: Path) -> None:
    first, second = temporary(project, "a"), temporary(project, "b")
    running = experiment(first, seconds=1)
    while not (first / "ran").exists():
        time.sleep(0.01)
    assert experiment(second).wait() == 0
    assert running.wait() == 0
    assert not (second / "ran").exists()


def test_failures_and_the_workspace_are_not_shared(project: Path) -> None:
    assert experiment(temporary(project, "a"), manifest={"failure": "out of memory"}).wait() == 0
    assert experiment(temporary(project, "b"), status=3).wait() == 3
    assert experiment(project).wait() == 0
    assert not list((project / ".snakemake").rglob("manifest.json"))
    assert (project / "ran").exists()


def test_a_store_that_another_user_made_is_read_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is refused anything where tests run as root: the system's answers are those that another user gets."""
    of_store = tmp_path / "store"
    monkeypatch.setenv("HEMORRHAGE_STORE", str(of_store))
    monkeypatch.chdir(tmp_path)
    with store.shared(Path(OUT)) as linked:
        assert not linked
        Path(OUT).mkdir(parents=True)
        Path(OUT, "manifest.json").write_text("{}")
    before = {file: file.stat().st_mtime_ns for file in of_store.rglob("*")}

    open_file, access = Path.open, os.access

    def refusing(file: Path, mode: str = "r", **named: str) -> Any:
        if "w" in mode and file.is_relative_to(of_store):
            raise PermissionError(13, "Permission denied", str(file))
        return open_file(file, mode, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(
        os,
        "access",
        lambda file, mode: not (mode & os.W_OK and Path(file).is_relative_to(of_store)) and access(file, mode),
    )
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    with store.shared(Path(OUT)) as linked:
        assert linked
    assert Path(OUT, "manifest.json").read_text() == "{}"
    for other in (Path(OUT).with_name("ffffffffffff"), Path("data/base/base/0123456789ab")):
        with store.shared(other) as linked:
            assert not linked
            other.mkdir(parents=True)
            (other / "manifest.json").write_text("{}")
        assert not (of_store / other.relative_to("data")).exists()
    after = {file: file.stat().st_mtime_ns for file in of_store.rglob("*") if file.suffix}
    assert after == {file: time for file, time in before.items() if file.suffix}


def test_a_named_store_is_anyones_and_forget_reaches_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEMORRHAGE_STORE", str(tmp_path / "store"))
    assert experiment(project).wait() == 0
    assert experiment(tmp_path / "other").wait() == 0
    assert not (tmp_path / "other/ran").exists()
    store.remove(Path(OUT))
    assert not list((tmp_path / "store").rglob("weights"))
    assert (project / OUT / "weights").is_file()
