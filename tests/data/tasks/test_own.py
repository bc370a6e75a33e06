"""A user's file of questions as a task: which are drawn, and what the step writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from hemorrhage.data.tasks import own
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from tests.chats import write_jsonl


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Number {n} is", "choices": ["odd", "even", "none"][: 2 + n % 2], "answer": 0} for n in range(9)
    ]
    return write_jsonl(tmp_path / "mine.jsonl", rows)


def test_all_are_asked_in_their_order_or_some_and_then_others(file: Path) -> None:
    every = [row["prompt"] for row in own.make(file, None, 0, seed=3)]
    assert every == [f"Number {n} is" for n in range(9)]
    first, fresh = own.make(file, 5, 0, seed=3), own.make(file, 100, 5, seed=3)
    assert [row["item"] for row in first] == [row["group"] for row in first] == list(range(5))
    assert sorted(row["prompt"] for row in (*first, *fresh)) == every
    assert [row["prompt"] for row in first] == sorted(row["prompt"] for row in first)
    assert own.make(file, 5, 0, seed=3) == first != own.make(file, 5, 0, seed=4)
    with pytest.raises(InputError, match="has 9 questions, and the evaluation takes 9: none is left"):
        own.make(file, 5, 9, seed=3)


def test_the_step_writes_what_a_probe_task_has(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--task", "mine", "--file", str(file), "--items", "all", "--skip", "0", "--seed", "0"]
    monkeypatch.setattr(sys, "argv", ["own", str(tmp_path / "out"), *options])
    own.main()
    items = pd.read_parquet(tmp_path / "out" / "items.parquet")
    assert set(items.columns) == {"item", "group", "prompt", "choices", "answer"}
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["task"], manifest["items"], manifest["source"]) == ("mine", 9, "file")
    # Five questions of two choices, four of three.
    assert manifest["chance"] == pytest.approx((5 / 2 + 4 / 3) / 9)
    monkeypatch.setattr(sys, "argv", ["own", str(tmp_path / "few"), *options[:5], "2", *options[6:]])
    own.main()
    assert read_manifest(tmp_path / "few")["sha256"] != manifest["sha256"]


def test_the_address_has_the_content_and_not_the_path(file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    first = own.identity(file, memory)
    moved = file.rename(tmp_path / "moved.jsonl")
    assert own.identity(moved, memory) == first
    moved.write_text(moved.read_text().replace("Number 3", "Number 4"))
    assert own.identity(moved, memory) != first
