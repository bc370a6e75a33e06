"""Steps ``task`` and ``fresh_task`` of a user's file of questions: its items, as those of a probe task.

    python -m hemorrhage.data.tasks.own OUT --task mine --file mine.jsonl --items all --skip 0 --seed 0

``--items`` are drawn with the seed, from those that are left when ``--skip`` are taken away, which the evaluation has;
they keep the order of the file. Each item is a group of its own: nothing says that two go together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

from hemorrhage.data.tasks.probes import Item
from hemorrhage.data.tasks.questions import read_questions
from hemorrhage.runtime.address import Json, fingerprint
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start


def identity(file: Path, memory: Path) -> Json:
    """Return what the address of the task holds of its file: the content, wherever it lies.

    ``memory`` is that of hemorrhage.runtime.address.fingerprint.
    """
    return {"source": "file", "sha256": fingerprint(file, memory)}


def make(file: Path, items: int | None, skip: int, seed: int) -> list[Item]:
    """Draw ``items`` questions of a file behind the first ``skip`` drawn, all that are left where it is None.

    Raises InputError where none is left.
    """
    questions = read_questions(file)
    drawn = random.Random(seed).sample(range(len(questions)), len(questions))
    chosen = sorted(drawn[skip:][:items])
    if not chosen:
        raise InputError(f"{file}: it has {len(questions)} questions, and the evaluation takes {skip}: none is left")
    return [{"item": item, "group": item, **questions[number]} for item, number in enumerate(chosen)]


def prepare(task: str, file: Path, items: int | None, skip: int, seed: int, out: Path) -> None:
    """Write ``items.parquet`` and the manifest of a task into ``out``; raises as ``make`` does."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = make(file, items, skip, seed)
    with writing(out) as folder:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
        write_manifest(
            folder,
            task=task,
            source="file",
            items=len(rows),
            chance=sum(1 / len(row["choices"]) for row in rows) / len(rows),
            seed=seed,
            sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        )


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.tasks.own")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--items", type=lambda text: None if text == "all" else int(text), required=True)
    parser.add_argument("--skip", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.file, arguments.items, arguments.skip, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
