r"""The benchmark step of a user's file: prompts, and what decides about their answers in the sandbox.

A ``.jsonl`` has an object a line, with ``tests`` where the answer is a program, or with a ``checker`` where it is text:

    {"prompt": "def add(a, b):\n", "prefix": "def add(a, b):\n", "tests": "assert add(2, 3) == 5"}
    {"prompt": "Lima as JSON:", "checker": "import json\nassert json.loads(answer)['city'] == 'Lima'"}

``tests`` are Python, which calls what the program defines: the names that they use and nothing in them defines.
``prefix`` stands before the answer in the program, nothing where it is left out. A ``checker`` is Python that reads the
answer as the text ``answer``. Either passes where it ends without an exception. Other keys are not read.

    python -m hemorrhage.data.benchmarks.own_programs OUT --task mine --file mine.jsonl --stop '["\n\n"]'

Every problem is one line that names the file, the line and the key.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from hemorrhage.data.lines import encodable, objects_of, text_of
from hemorrhage.runtime.address import Json, fingerprint
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start

KEYS = "prompt, and tests or checker"

ANSWER = "answer"
"""The name by which a checker reads an answer."""


class Problem(TypedDict):
    """A row of ``items.parquet``: hemorrhage.evaluate.code_tasks_schema.PROBLEMS. Without a prefix it is a text."""

    item: int
    name: str
    prompt: str
    prefix: str | None
    solution: str
    tests: str
    asked: list[str]
    given: str


def identity(file: Path, stop: Sequence[str], memory: Path) -> Json:
    """Return what the address of the task holds: the content of its file, wherever it lies, and what ends an answer.

    ``memory`` is that of hemorrhage.runtime.address.fingerprint.
    """
    return {"source": "file", "sha256": fingerprint(file, memory), "stop": list(stop)}


def read_problems(file: Path) -> list[Problem]:
    """Read all problems of a file, in its order. Raises InputError for the first that can't be posed."""
    lines = objects_of(file, "problems", KEYS)
    problems = [_problem(f"{file}, line {line}", number, content) for number, (line, content) in enumerate(lines)]
    if not problems:
        raise InputError(f"{file}: it is empty: no problem is in it")
    return problems


def _problem(where: str, number: int, content: Mapping[str, object]) -> Problem:
    prompt = _text(where, "prompt", content.get("prompt"))
    if ("tests" in content) == ("checker" in content):
        raise InputError(f"{where}: it needs either tests or checker{', not both' if 'tests' in content else ''}")
    is_program = "tests" in content
    key = "tests" if is_program else "checker"
    if not is_program and "prefix" in content:
        raise InputError(f"{where}: prefix: stands before a program, and a checker reads text")
    source = _text(where, key, content[key])
    names = sorted(_undefined(where, key, source))
    if is_program and not names:
        raise InputError(f"{where}: tests: they use nothing that a program could define")
    if not is_program and ANSWER not in names:
        raise InputError(f"{where}: checker: it does not read {ANSWER}, which is the text that the model wrote")
    prefix = content.get("prefix", "")
    if not isinstance(prefix, str):
        raise InputError(f"{where}: prefix: must be a text (got {str(prefix)[:40]!r})")
    return {
        "item": number,
        "name": str(number),
        "prompt": prompt,
        "prefix": encodable(f"{where}: prefix", prefix) if is_program else None,
        "solution": "",
        "tests": f"\n{source}\n",
        "asked": names if is_program else [ANSWER],
        "given": "",
    }


def _text(where: str, key: str, value: object) -> str:
    if value is None:
        raise InputError(f"{where}: {key}: missing; a problem has {KEYS}")
    return text_of(where, key, value).replace("\r\n", "\n")


def _undefined(where: str, key: str, source: str) -> set[str]:
    """Return the names that Python code uses and nothing in it defines. Raises InputError where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {key}: it is not Python: {error}") from None
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return used - set(_defined(tree)) - set(dir(builtins))


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                yield name
            case ast.alias(name=name, asname=shown):
                yield shown or name.partition(".")[0]


def prepare(task: str, file: Path, stop: Sequence[str], out: Path) -> None:
    """Write ``items.parquet`` and the manifest of a task into ``out``; raises as ``read_problems`` does."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = read_problems(file)
    with writing(out) as folder:
        table = pa.Table.from_pylist(rows)
        # A column of nothing is a column of texts, too.
        fields = [field.with_type(pa.string()) if field.name == "prefix" else field for field in table.schema]
        parquet.write_table(table.cast(pa.schema(fields)), folder / "items.parquet")
        write_manifest(
            folder,
            task=task,
            source="file",
            items=len(rows),
            chance=0.0,
            shots=0,
            stop=list(stop),
            sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        )


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.benchmarks.own_programs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--stop", type=json.loads, required=True, help="strings that end an answer, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.file, arguments.stop, arguments.out)


if __name__ == "__main__":
    main()
