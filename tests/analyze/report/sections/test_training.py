"""The section of trainings: how they are read, stored, and written in the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from hemorrhage.analyze.inputs import POINTS, Training, _training
from hemorrhage.analyze.report.sections.training import table
from hemorrhage.analyze.stored import decode, encode
from hemorrhage.runtime.artifact import write_manifest

TRAINING = Training(
    "small-1", "text", "llama", 1000, 21_000, 2.5e12, 2.25, 2.5, 1234.5, 1, [10, 20], [3.0, 2.0], [20], [2.5]
)


def test_numbers_of_the_table() -> None:
    (row,) = table([TRAINING])
    assert row[:2] == ("small-1", "llama")
    assert row[3:] == ("1,000", "21,000", "21", "2.5", "2.250", "2.500", "1,234", 1)


def test_it_is_stored_and_read_again() -> None:
    assert decode(Training, encode(TRAINING)) == TRAINING


def test_a_training_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "small-1" / "address"
    folder.mkdir(parents=True)
    steps = range(1, 2 * POINTS + 1)
    rows = [
        {"tokens": 8 * step, "loss": 1 / step, "heldout_loss": 0.5 if step % POINTS == 0 else None} for step in steps
    ]
    pd.DataFrame(rows).to_parquet(folder / "curve.parquet")
    fields = dataclasses.asdict(TRAINING)
    numbers = {
        key: value for key, value in fields.items() if not isinstance(value, list) and key not in ("name", "kind")
    }
    write_manifest(folder, spec={"tune": {"kind": "sft"}}, **numbers)
    made = _training(folder)
    assert (made.name, made.kind, made.weights) == ("small-1", "sft", 1000)
    assert (len(made.at), made.measured_at) == (POINTS, [8 * POINTS, 16 * POINTS])
