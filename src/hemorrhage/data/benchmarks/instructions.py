"""Tasks that ask for a text: articles to sum up, instructions to follow.

- ``xsum`` (Narayan et al. 2018, arXiv 1808.08745): BBC articles of the test split with one-sentence summaries.
- ``mt_bench`` (Zheng et al. 2023, arXiv 2306.05685): 80 instructions of two turns; reference answers to some.

python -m hemorrhage.data.benchmarks.instructions OUT --task xsum --data '{"source": "mirror", "path": "hf"}'
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hemorrhage.data.source import DataSource, Mirror
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.network import dataset
from hemorrhage.runtime.step import InputError, start


@dataclass(frozen=True)
class Source:
    """Where a task lies, and the columns that are read."""

    repository: str
    config: str
    split: str
    columns: tuple[str, ...]


Row = dict[str, str | list[str]]
"""Column -> cell: a text, or those of several turns."""

TASKS = {
    "xsum": Source("EdinburghNLP/xsum", "default", "test", ("document", "summary")),
    "mt_bench": Source("HuggingFaceH4/mt_bench_prompts", "default", "train", ("prompt", "reference")),
}


def mirror_files(task: str, data: Mirror) -> list[Path]:
    """List the files of a task in the mirror, in order; empty where there are none."""
    source = TASKS[task]
    return sorted(Path(data["path"]).glob(f"{source.repository}/{source.config}/{source.split}-*.parquet"))


def repository(task: str) -> str:
    """Return the repository of the hub that ``task`` is read from."""
    return TASKS[task].repository


def reachable(task: str, data: DataSource) -> str | None:
    """Say in one line what is missing before ``task`` can be read, or None; the hub itself is not asked."""
    if task not in TASKS:
        return f"task {task!r} is unknown; allowed: {', '.join(TASKS)}"
    source = TASKS[task]
    if data["source"] == "embedded":
        return f"task {task} is in no installed package; data.source has to be mirror or hub"
    if data["source"] == "hub":
        is_pinned = source.repository in data["revisions"]
        return None if is_pinned else f"task {task} needs the commit of {source.repository} in data.revisions"
    if not mirror_files(task, data):
        pattern = f"{source.repository}/{source.config}/{source.split}-*.parquet"
        return f"task {task}: no file {pattern} in {data['path']}"
    return None


def identity(task: str, data: DataSource, memory: Path) -> Json:
    """Return what the address of a prepared task holds of its source, as hemorrhage.data.benchmarks.harness does."""
    from hemorrhage.runtime.address import fingerprint

    source: Json = {"entry": asdict(TASKS[task]), "source": data["source"]}
    if data["source"] == "hub":
        return {**source, "revision": data["revisions"][TASKS[task].repository]}
    files = mirror_files(task, data) if data["source"] == "mirror" else []
    return {**source, "files": {file.name: fingerprint(file, memory) for file in files}}


def read(task: str, data: DataSource) -> list[Row]:
    """Read the rows of a task. Raises InputError with the line of ``reachable`` where they can't be had."""
    reason = reachable(task, data)
    if reason:
        raise InputError(reason)
    source = TASKS[task]
    if data["source"] == "mirror":
        from pyarrow import parquet

        files = mirror_files(task, data)
        return [row for file in files for row in parquet.read_table(file, columns=list(source.columns)).to_pylist()]
    assert data["source"] == "hub", "the third of the sources that reachable lets through"
    table = dataset(source.repository, source.config, source.split, data["revisions"][source.repository])
    rows: list[Row] = table.select_columns(list(source.columns)).to_list()
    return rows


def prepare(task: str, data: DataSource, out: Path) -> None:
    """Write ``items.parquet`` (``item`` and the task's columns) and the manifest into ``out``; raises as ``read``."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"item": item, **row} for item, row in enumerate(read(task, data))]
    with writing(out) as folder:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
        digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        write_manifest(folder, task=task, source=data, items=len(rows), sha256=digest)


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.benchmarks.instructions")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--data", type=json.loads, required=True, help="source of the data sets, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.data, arguments.out)


if __name__ == "__main__":
    main()
