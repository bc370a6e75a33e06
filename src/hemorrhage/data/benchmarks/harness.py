"""The benchmark step: the data of a task of lm-eval, as files that its own definition can read.

    python -m hemorrhage.data.benchmarks.harness OUT --task arc_easy --data '{"source": "mirror", "path": "hf"}'

Prompts, filters and metrics stay lm-eval's; a file here, ``<task>/<split>.parquet``, is what lm-eval would have
downloaded. ``<task>`` is lm-eval's word: one folder, or for a group such as MMLU one for each of its tasks. Prepared
are the split that is scored, and the one that few-shot examples come from where the definition names one. Which
repository is read and what the metric is, hemorrhage.data.benchmarks.catalogue says.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.data.benchmarks.entry import Benchmark, Repository
from hemorrhage.data.source import DataSource
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.network import dataset
from hemorrhage.runtime.step import InputError, start

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
"""A row of a data set of lm-eval's: its columns are the data set's own."""


def splits(benchmark: Benchmark) -> list[str]:
    """Name the splits that are prepared, the scored one first."""
    return [benchmark.split, *([benchmark.shots_split] if benchmark.shots_split else [])]


def mirror_files(repository: Repository, folder: Path, split: str) -> list[Path]:
    """List the files of a split in a folder laid out like the hub, in order; empty where there are none."""
    return sorted(folder.glob(f"{repository.name}/{repository.config}/{split}-*.parquet"))


def entry(task: str) -> Benchmark:
    """Return the entry of a task in the catalogue; ValueError where it has none."""
    # Imported by name, since an address follows imports: another task's entry is none of this one's business.
    catalogue: dict[str, Benchmark] = importlib.import_module("hemorrhage.data.benchmarks.catalogue").BENCHMARKS
    if task not in catalogue:
        raise InputError(f"task {task!r} is unknown; allowed: {', '.join(catalogue)}")
    return catalogue[task]


def repository_of(task: str, benchmark: Benchmark, data: DataSource) -> Repository:
    """Choose the repository that ``task`` is read from; ValueError in one line where none can be.

    The hub itself is not asked.
    """
    if data["source"] == "hub":
        for repository in benchmark.repositories:
            if repository.name in data["revisions"]:
                return repository
        names = " or ".join(repository.name for repository in benchmark.repositories)
        raise InputError(f"task {task} needs the commit of {names} in data.revisions")
    if data["source"] != "mirror":
        raise InputError(f"task {task} needs data.source mirror or hub (got {data['source']!r})")
    folder = Path(data["path"])
    if not folder.is_dir():
        raise InputError(f"task {task}: data.path {folder} is not a folder")
    lacking = []
    for repository in benchmark.repositories:
        absent = [split for split in splits(benchmark) if not mirror_files(repository, folder, split)]
        if not absent:
            return repository
        lacking.append(f"{repository.name}/{repository.config}/{absent[0]}-*.parquet")
    raise InputError(f"task {task}: no file {' or '.join(lacking)} in {folder}")


def repository(task: str) -> str:
    """Return the repository of the hub that ``task`` is read from first; ValueError where it is unknown."""
    return entry(task).repositories[0].name


def reachable(task: str, data: DataSource) -> str | None:
    """Say in one line what is missing before ``task`` can be read from ``data``, or None; see ``repository_of``."""
    try:
        repository_of(task, entry(task), data)
    except ValueError as error:
        return str(error)
    return None


def identity(task: str, data: DataSource, memory: Path) -> Json:
    """Return what the address of a prepared task holds of its source next to the code of the step.

    That is its own entry, the repository that is read, and digests of its files or the pinned commit; where a mirror
    lies does not count. ``memory`` is that of runtime.address.fingerprint. Raises InputError where it is not reachable.
    """
    from hemorrhage.runtime.address import fingerprint

    benchmark = entry(task)
    repository = repository_of(task, benchmark, data)
    source: Json = {**asdict(benchmark), "repositories": asdict(repository), "source": data["source"]}
    if data["source"] == "hub":
        return {**source, "revision": data["revisions"][repository.name]}
    assert data["source"] == "mirror", "repository_of refuses the rest"
    files = {
        file.name: fingerprint(file, memory)
        for split in splits(benchmark)
        for file in mirror_files(repository, Path(data["path"]), split)
    }
    return {**source, "files": files}


def prepare(task: str, data: DataSource, out: Path) -> None:
    """Write the data of ``task`` into ``out``; ValueError where a file, a column or a right answer is missing."""
    from pyarrow import parquet

    benchmark = entry(task)
    repository = repository_of(task, benchmark, data)
    tables = {split: _table(task, benchmark, repository, split, data) for split in splits(benchmark)}
    scored = _members(task, benchmark, tables[benchmark.split])
    rows = [row for _, table in sorted(scored.items()) for row in table.to_pylist()]
    chance, floor = levels(task, benchmark, rows)
    with writing(out) as folder:
        for split, table in tables.items():
            for member, content in _members(task, benchmark, table).items():
                (folder / member).mkdir(exist_ok=True)
                parquet.write_table(content, folder / member / f"{split}.parquet")
        write_manifest(
            folder,
            task=task,
            source=data,
            repository=asdict(repository),
            definition=benchmark.definition,
            metric=benchmark.metric,
            shots=benchmark.shots,
            split=benchmark.split,
            items=len(rows),
            members={member: len(table) for member, table in scored.items()},
            chance=chance,
            floor=floor,
            sha256=_digest({split: table.to_pylist() for split, table in tables.items()}),
        )


def levels(task: str, benchmark: Benchmark, rows: list[Row]) -> tuple[float, float]:
    """Return the expected score of a guess, and the score of always giving the most frequent label.

    A guess takes each of an item's choices with the same probability; where nothing is chosen it is never right.
    ``rows`` are the scored items. Raises InputError where an item has no right answer.
    """
    if benchmark.options is None:
        return 0.0, 0.0
    choices, right = [], []
    for number, row in enumerate(rows):
        try:
            count = benchmark.options if isinstance(benchmark.options, int) else len(_at(row, benchmark.options))
            answer = _right(row, benchmark)
        except (TypeError, ValueError):
            count, answer = 0, 0
        if not 0 <= answer < count:
            raise InputError(f"task {task}: {benchmark.split} item {number} has no right answer among its choices")
        choices.append(count)
        right.append(answer)
    most = collections.Counter(right).most_common(1)[0][1]
    return sum(1 / count for count in choices) / len(rows), most / len(rows)


def _right(row: Row, benchmark: Benchmark) -> int:
    value = _at(row, benchmark.right)
    if benchmark.labels is None:
        return int(value)
    labels = _at(row, benchmark.labels) if isinstance(benchmark.labels, str) else benchmark.labels
    return list(labels).index(value.strip())


def _at(row: Row, path: str) -> Any:
    value: Any = row
    for key in path.split("."):
        value = value[key]
    return value


def _table(task: str, benchmark: Benchmark, repository: Repository, split: str, data: DataSource) -> pyarrow.Table:
    """Read all rows of a split, its columns named as lm-eval's definition reads them."""
    import pyarrow
    from pyarrow import compute, parquet

    if data["source"] == "hub":
        revision = data["revisions"][repository.name]
        table = dataset(repository.name, repository.config, split, revision).with_format("arrow")[:]
    else:
        assert data["source"] == "mirror", "repository_of refuses the rest"
        table = pyarrow.concat_tables(map(parquet.read_table, mirror_files(repository, Path(data["path"]), split)))
    # Labels may be booleans where lm-eval's own repository has 0 and 1.
    names = dict(repository.renamed)
    columns = {names.get(name, name): table[name] for name in table.column_names}
    columns = {
        name: compute.cast(column, pyarrow.int64()) if pyarrow.types.is_boolean(column.type) else column
        for name, column in columns.items()
    }
    lacking = sorted(set(benchmark.columns) - set(columns))
    if lacking:
        raise InputError(f"task {task}: {repository.name} {split} has no column {', '.join(lacking)}")
    if not len(table):
        raise InputError(f"task {task}: {repository.name} {split} has no rows")
    return pyarrow.table(columns)


def _members(task: str, benchmark: Benchmark, table: pyarrow.Table) -> dict[str, pyarrow.Table]:
    """Split the rows by task of lm-eval."""
    from pyarrow import compute

    if benchmark.member is None:
        return {task: table}
    column = table[benchmark.member]
    return {
        f"{task}_{value}": table.filter(compute.equal(column, value)) for value in sorted(column.unique().to_pylist())
    }


def _digest(rows: dict[str, list[Row]]) -> str:
    """Return the SHA-256 of everything prepared, whatever the files' encoding."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.data.benchmarks.harness", description="prepare a benchmark"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=json.loads, required=True, help="source of the data, as JSON")
    arguments = parser.parse_args()
    start()
    prepare(arguments.task, arguments.data, arguments.out)


if __name__ == "__main__":
    main()
