"""How the rows of a data set become documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hemorrhage.data.texts.entry import Entry, arrange, columns, mirror_files, pattern

ENTRY = Entry("org/set", "main", "train", "test", "Q: {question}\nA: {answer}")


def test_a_template_reads_its_columns_and_makes_a_document_of_a_row() -> None:
    assert columns(ENTRY) == ["question", "answer"]
    rows = {"train": [{"question": "1?", "answer": "one\r\ntwo"}], "test": [{"question": "2?", "answer": "3"}]}
    assert arrange(ENTRY, rows) == {"calibration": ["Q: 1?\nA: one\ntwo"], "evaluation": ["Q: 2?\nA: 3"]}


def test_documents_of_a_single_split_are_dealt_out_in_turn() -> None:
    entry = dataclasses.replace(ENTRY, evaluation="train", template="{text}")
    found = arrange(entry, {"train": [{"text": str(number)} for number in range(5)]})
    assert found == {"calibration": ["0", "2", "4"], "evaluation": ["1", "3"]}


def test_rows_between_headings_are_one_document() -> None:
    entry = dataclasses.replace(ENTRY, template="{text}", join="|", heading=r" = [^=]+ = \n")
    lines = ["", " = One = \n", "a", " = = Part = = \n", " = Two = \n", "b", "", "c"]
    found = arrange(entry, {"train": [{"text": line} for line in lines], "test": []})["calibration"]
    assert found == ["| = One = \n|a| = = Part = = \n", " = Two = \n|b||c"]
    assert "|".join(found) == "|".join(lines), "nothing is lost"


def test_files_of_a_split_are_found_in_order(tmp_path: Path) -> None:
    assert pattern(ENTRY, "train") == "org/set/main/train-*.parquet"
    folder = tmp_path / "org/set/main"
    folder.mkdir(parents=True)
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001", "training-00000"):
        (folder / f"{name}.parquet").touch()
    found = [file.name for file in mirror_files(ENTRY, tmp_path, "train")]
    assert found == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert mirror_files(ENTRY, tmp_path, "validation") == []
