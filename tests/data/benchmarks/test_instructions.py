"""Articles to sum up and instructions, as the decoding sweep reads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage.data.benchmarks import instructions
from hemorrhage.data.source import Embedded, Hub, Mirror
from hemorrhage.runtime.artifact import read_manifest

ROWS: dict[str, dict[str, Any]] = {
    "xsum": {"document": ["A long story.", "Another."], "summary": ["Short.", "Shorter."], "id": ["7", "8"]},
    "mt_bench": {"prompt": [["Write.", "Again."], ["Sum up."]], "reference": [["Text.", "More."], []], "category": "w"},
}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for task, source in instructions.TASKS.items():
        file = tmp_path / source.repository / source.config / f"{source.split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pd.DataFrame(ROWS[task]).to_parquet(file)
    return tmp_path


@pytest.mark.parametrize("task", instructions.TASKS)
def test_rows_keep_their_order_and_what_is_asked(
    task: str, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f'{{"source": "mirror", "path": "{mirror}"}}'
    monkeypatch.setattr(sys, "argv", ["instructions", str(tmp_path / "out"), "--task", task, "--data", data])
    instructions.main()
    rows = pd.read_parquet(tmp_path / "out" / "items.parquet")
    columns = instructions.TASKS[task].columns
    assert list(rows.columns) == ["item", *columns]
    assert rows.item.tolist() == [0, 1]
    assert [list(value) for value in rows[columns[0]]] == [list(value) for value in ROWS[task][columns[0]]]
    manifest = read_manifest(tmp_path / "out")
    assert manifest["task"] == task
    assert manifest["items"] == 2


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, mirror: Path) -> None:
    assert "unknown" in str(instructions.reachable("essay", Embedded(source="embedded")))
    assert "mirror or hub" in str(instructions.reachable("xsum", Embedded(source="embedded")))
    assert "the commit of EdinburghNLP/xsum" in str(instructions.reachable("xsum", Hub(source="hub", revisions={})))
    empty = Mirror(source="mirror", path=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no file EdinburghNLP/xsum/default/test-\*\.parquet"):
        instructions.read("xsum", empty)
    there = Mirror(source="mirror", path=str(mirror))
    assert instructions.reachable("mt_bench", there) is None
    files = instructions.identity("xsum", there, tmp_path / "memory.json")["files"]
    assert isinstance(files, dict)
    assert files.keys() == {"test-00000-of-00001.parquet"}
