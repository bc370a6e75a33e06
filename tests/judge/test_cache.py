"""The cache of judgements: bounded, the least recently used goes first, one judgement at a time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hemorrhage.judge import cache
from hemorrhage.runtime.command import CommandError


def output(folder: Path, name: str, size: int, used: float) -> Path:
    made = folder / "data" / "evaluations" / name / "0123456789ab"
    made.mkdir(parents=True)
    (made / "rows").write_bytes(b"x" * (size - 2))
    (made / "manifest.json").write_text("{}")
    os.utime(made / "manifest.json", (used, used))
    return made


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    oldest, middle, newest = (output(tmp_path, name, 1000, used) for used, name in enumerate(("c", "a", "b"), 1))
    assert [entry.folder for entry in cache.entries(tmp_path)] == [oldest, middle, newest]
    assert [entry.bytes for entry in cache.entries(tmp_path)] == [1000] * 3
    removed = cache.trim(tmp_path, 2000 / 1e9, keep=[oldest])
    assert [entry.folder for entry in removed] == [middle]
    cache.touch([oldest / "manifest.json", tmp_path / "none"])
    assert [entry.folder for entry in cache.entries(tmp_path)] == [newest, oldest]
    assert cache.clear(tmp_path) == 2000
    assert cache.entries(tmp_path) == []


def test_the_folder_is_that_of_the_xdg_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "hemorrhage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "hemorrhage"


def test_what_a_killed_judgement_left_goes_and_another_says_that_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hold() -> None:
        with cache.locked(tmp_path):
            pass

    (tmp_path / "results-left").mkdir()
    second = threading.Thread(target=hold, daemon=True)
    with cache.locked(tmp_path):
        assert not (tmp_path / "results-left").exists()
        assert capsys.readouterr().err == ""
        second.start()
        second.join(0.5)
        assert second.is_alive()
    second.join(10)
    assert not second.is_alive()
    assert capsys.readouterr().err == f"waiting for another judgement, which uses {tmp_path}\n"


def test_a_place_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CommandError, match="set XDG_CACHE_HOME to a folder that can"),
        cache.locked(tmp_path / "file/x"),
    ):
        pass
