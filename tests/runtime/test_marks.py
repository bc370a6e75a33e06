"""Marks of outputs that are there go, all others stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake.persistence.file import FilePersistence

from hemorrhage.runtime.marks import MARKS, remove_marks


@pytest.fixture
def persistence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilePersistence:
    """Snakemake's own records of a folder."""
    monkeypatch.chdir(tmp_path)
    return FilePersistence(nolock=True, path=tmp_path / ".snakemake")


def marks() -> list[Path]:
    return [file for file in MARKS.rglob("*") if file.is_file()]


def test_only_marks_of_outputs_that_exist_are_removed(persistence: FilePersistence) -> None:
    long = f"data/{'x' * 200}/{'y' * 200}/manifest.json"
    for name in ("data/a/manifest.json", long):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    for name in ("data/a/manifest.json", long, "data/b/manifest.json"):
        persistence._mark_incomplete(name, None)
    (MARKS / "no base64 é").touch()
    assert len(marks()) == 4
    remove_marks(Path())
    assert persistence._filter_incomplete_keys(["data/a/manifest.json", long]) == set()
    assert sorted(mark.stat().st_size > 0 for mark in marks()) == [False, True], (
        "of an output that is missing, and none"
    )


def test_snakemake_does_not_mind_that_a_mark_is_gone(persistence: FilePersistence) -> None:
    Path("a").touch()
    persistence._mark_incomplete("a", None)
    remove_marks(Path())
    persistence._unmark_incomplete("a")
    assert marks() == []


def test_a_folder_without_marks_is_left_as_it_is(tmp_path: Path) -> None:
    remove_marks(tmp_path)
    assert list(tmp_path.iterdir()) == []
