"""The wheel: it holds every file that the package reads, and a program without this repository can use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.compress.methods.published.test_external import pruned
from tests.conftest import ROOT
from tests.models.sources.folders import META

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of a wheel that is built from what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src", "pyproject.toml", "README.md",
         "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_it_holds_every_file_of_the_package(installed: Path) -> None:
    here = {
        path.relative_to(ROOT / "src")
        for path in (ROOT / "src/hemorrhage").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {path.relative_to(installed) for path in (installed / "hemorrhage").rglob("*") if path.is_file()}
    assert there == here
    assert (installed / "hemorrhage/py.typed").is_file()


def test_it_installs_the_command(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "hemorrhage = hemorrhage.cli:main" in entry_points.read_text()


def test_its_command_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    for command in ("plan", "predict"):
        done = subprocess.run(
            [sys.executable, "-m", "hemorrhage.cli", command],
            cwd=tmp_path, env={"PYTHONPATH": str(installed), "PATH": ""}, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "rtn-4" in done.stdout or "checkpoints" in done.stdout


def test_a_home_that_cannot_be_written_is_one_line_that_says_what_to_set(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "requirements-uv.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    variables = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "MAKEFLAGS")}
    # Nobody can make a folder there, root included.
    done = subprocess.run(
        ["make", "setup"], cwd=tmp_path, env={**variables, "HOME": "/proc/nowhere"}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "/proc/nowhere/.cache can't be written: export XDG_CACHE_HOME=<a folder that can be>"
    )


@pytest.mark.end_to_end
def test_it_judges_a_published_file_where_there_is_no_repository(installed: Path, tiny: Path, tmp_path: Path) -> None:
    published = tmp_path / "half"
    shutil.copytree(tiny, published)
    save_file(pruned(load_file(tiny / "model.safetensors")), published / "model.safetensors", META)
    asked = ["judge", str(tiny), "half", "--windows", "4", "--window", "32", "--budget", "kl=0.0001", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "hemorrhage.cli", *asked],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    assert [(file["file"], file["answer"]) for file in content["files"]] == [("half", "no")]
    assert "hemorrhage" in {path.name for path in (tmp_path / "cache").iterdir()}
