"""Addresses move with what an output depends on, and with nothing else."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hemorrhage.runtime import address
from tests.conftest import ROOT


def program_of(tree: Path, module: str) -> str:
    """The digest as a fresh process sees it from another copy of the sources."""
    code = f"from hemorrhage.runtime.address import program; print(program({module!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src" / "hemorrhage", tmp_path / "hemorrhage", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_address_depends_on_parts_and_not_on_key_order() -> None:
    assert address.address({"a": 1, "b": 2}) == address.address({"b": 2, "a": 1})
    assert address.address("x", 1) != address.address("x", 2)
    assert address.address("ab") != address.address("a", "b")


def test_comment_docstring_and_layout_do_not_count(tree: Path) -> None:
    before = program_of(tree, "hemorrhage.runtime.artifact")
    file = tree / "hemorrhage" / "runtime" / "artifact.py"
    file.write_text(
        file.read_text().replace('"""The manifest of a finished output."""', '"""Other words."""') + "\n\n# more\n"
    )
    assert program_of(tree, "hemorrhage.runtime.artifact") == before
    file.write_text(file.read_text() + "\nMORE = 1\n")
    assert program_of(tree, "hemorrhage.runtime.artifact") != before


def test_imported_modules_count_and_others_do_not(tree: Path) -> None:
    step, other = "hemorrhage.evaluate.reference", "hemorrhage.analyze.__main__"
    before = {module: program_of(tree, module) for module in (step, other)}
    language = tree / "hemorrhage" / "evaluate" / "language.py"
    language.write_text(language.read_text() + "\nMORE = 1\n")
    assert program_of(tree, step) != before[step]
    assert program_of(tree, other) == before[other]


@pytest.mark.parametrize("step", ["models", "data.texts", "calibrate", "compress", "evaluate", "decode", "analyze"])
def test_no_step_depends_on_the_registry_the_config_or_the_plan(step: str) -> None:
    closure = address._closure(f"hemorrhage.{step}.__main__")
    assert not closure & {"hemorrhage.study.registry", "hemorrhage.study.params", "hemorrhage.study.plan"}


def test_fingerprint_sees_content_and_not_time(tmp_path: Path) -> None:
    folder, memory = tmp_path / "model", tmp_path / "memory.json"
    folder.mkdir()
    (folder / "weights").write_bytes(b"12")
    first = address.fingerprint(folder, memory)
    os.utime(folder / "weights", ns=(1, 1))
    assert address.fingerprint(folder, memory) == first
    (folder / "weights").write_bytes(b"13")
    assert address.fingerprint(folder, memory) != first
    with pytest.raises(FileNotFoundError):
        address.fingerprint(tmp_path / "absent", memory)


def test_relative_imports_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "hemorrhage" / "odd.py").write_text("from . import registry\n")
    monkeypatch.setattr(address, "SOURCE", tree / "hemorrhage")
    with pytest.raises(ValueError, match="relative imports"):
        address.program("hemorrhage.odd")
    importlib.invalidate_caches()
