"""Every module has its test: tests/ has the folders of src/hemorrhage, and a ``test_<module>.py`` for each module.

``__main__`` has ``test_main.py``, a package's own ``__init__`` none. Tests across modules stand beside the others as
``test_<what>_step.py``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE, TESTS = ROOT / "src" / "hemorrhage", ROOT / "tests"

MIRRORED = ("calibrate", "data", "decode", "evaluate", "mitigate", "models", "runtime", "sandbox", "train")
"""The rooms in which every test file is that of a module or one across modules."""

WITHOUT = {
    "analyze/manifests": "types of dictionaries",
    "data/benchmarks/entry": "dataclasses without a method",
    "decode/schema": "columns of a table",
    "decode/spec": "fields with their limits; test_sweep.py has what they refuse",
    "evaluate/harness_schema": "columns of a table",
    "evaluate/code_tasks_schema": "columns of a table",
    "evaluate/schema": "columns of a table",
    "evaluate/served_schema": "columns of a table",
    "mitigate/schema": "columns of a table",
    "models/sources/origin": "dataclasses without a method",
    "train/schema": "columns of a table",
    "train/spec": "types of dictionaries",
}
"""Module -> why it needs no test of its own."""

LIST = TESTS / "pending.txt"
PENDING = frozenset(LIST.read_text(encoding="utf-8").split()) if LIST.is_file() else frozenset()
"""Modules of the other rooms whose test is still to be written, or to be named after them. Whoever does so takes the
module off the list, or this test fails: ``python -m tests.test_mirror`` writes it anew, and only ever a shorter one."""


def modules() -> list[str]:
    """Every module that says more than a docstring, by its path under src/hemorrhage without ``.py``."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        says = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
        if file.stem != "__init__" and says:
            found.append(str(file.relative_to(SOURCE).with_suffix("")))
    return found


def test_of(module: str) -> Path:
    """Where the test of a module lies."""
    *rooms, name = module.split("/")
    return TESTS.joinpath(*rooms, f"test_{name.strip('_')}.py")


test_of.__test__ = False  # type: ignore[attr-defined]


def functions(module: str) -> list[str]:
    """Names of the functions and methods that a module defines."""
    tree = ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("module", modules())
def test_a_module_has_its_test(module: str) -> None:
    there = test_of(module).is_file()
    if module in WITHOUT:
        assert not there, f"{module} has a test: take it off WITHOUT"
    elif module in PENDING:
        assert not there, f"{module} has its test: take it off PENDING"
    else:
        assert there, f"{test_of(module).relative_to(ROOT)} is missing"


def test_lists_name_modules_that_there_are() -> None:
    assert {*WITHOUT, *PENDING} <= {*modules()}
    assert not {*WITHOUT} & PENDING
    assert not [module for module in PENDING if module.split("/")[0] in MIRRORED]
    assert LIST.is_file() == bool(PENDING), "an empty list is no list"


@pytest.mark.parametrize("module", WITHOUT)
def test_a_module_without_a_test_computes_nothing(module: str) -> None:
    assert functions(module) == []


@pytest.mark.parametrize("room", MIRRORED)
def test_a_test_is_that_of_a_module_or_across_modules(room: str) -> None:
    expected = {test_of(module) for module in modules()}
    others = [
        file.relative_to(TESTS)
        for file in (TESTS / room).rglob("test_*.py")
        if file not in expected and not file.stem.endswith("_step")
    ]
    assert others == []


def imported(test: Path) -> set[str]:
    """Dotted names that a test and what it shares with others import, and the strings it holds."""
    found: set[str] = set()
    waiting = [test, *(folder / "conftest.py" for folder in test.parents if TESTS in folder.parents)]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                if node.module.startswith("tests.") and node.module != "tests.conftest":
                    waiting.append(ROOT / f"{node.module.replace('.', '/')}.py")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Programs that a test runs name modules, too.
                found |= {node.value, *re.findall(r"hemorrhage(?:\.\w+)+", node.value)}
    return found


def test_a_test_reads_its_module() -> None:
    """By an import, or by the name under which the strategies are found."""
    silent = []
    for module in modules():
        if module.split("/")[0] in MIRRORED and test_of(module).is_file():
            names = imported(test_of(module))
            short = module.startswith("decode/strategies/") and module.rpartition("/")[2] in names
            if not short and f"hemorrhage.{module.replace('/', '.')}" not in names:
                silent.append(module)
    assert silent == [], silent


def main() -> None:
    """Write the list of pending modules without those that have got their test or are gone."""
    left = sorted(module for module in PENDING & {*modules()} if not test_of(module).is_file())
    LIST.write_text("".join(f"{module}\n" for module in left), encoding="utf-8")
    if not left:
        LIST.unlink()


if __name__ == "__main__":
    main()
