"""Who may import whom: docs/ARCHITECTURE.md says it in a table, and the code is held to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "hemorrhage"
ROW = re.compile(r"^\| `([\w.]+)` \|.*\|([^|]*)\|$")


def modules() -> dict[str, ast.Module]:
    """Name below the package -> syntax tree, of every module."""
    trees = {}
    for file in SOURCE.rglob("*.py"):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        trees[name.removesuffix(".__init__") if name != "__init__" else ""] = ast.parse(file.read_text())
    return trees


MODULES = modules()


def table() -> dict[str, set[str]]:
    """Room -> what it may import, of the table below the heading "Rooms"."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text().split("\n## Rooms\n", 1)[1].split("\n## ", 1)[0]
    rows = [match for line in text.splitlines() if (match := ROW.match(line))]
    return {match[1]: set(re.findall(r"`([\w.]+)`", match[2])) for match in rows}


ROOMS = table()


def room(module: str) -> str:
    """The room of a module: the longest that its name begins with."""
    held = [name for name in ROOMS if module == name or module.startswith(f"{name}.")]
    assert held, f"{module} is in no room of docs/ARCHITECTURE.md"
    return max(held, key=len)


def imported(name: str) -> Iterator[str]:
    """Modules of this package that a module imports, at its top or later."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("hemorrhage.") for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom) and is_own(node.module or ""):
            module = (node.module or "").removeprefix("hemorrhage").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else module


def named(name: str) -> Iterator[str]:
    """Modules that a module imports by a string: ``hemorrhage.a.b``, or all of ``hemorrhage.a.`` and a name.

    A string of a table counts, too.
    """
    by_name = False
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            by_name = True
            argument = node.args[0]
            first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
            text = str(first.value) if isinstance(first, ast.Constant) else ""
            if isinstance(argument, ast.JoinedStr) and text.startswith("hemorrhage."):
                below = text.removeprefix("hemorrhage.")
                yield from (other for other in MODULES if other.startswith(below))
            elif is_own(text):
                yield text.removeprefix("hemorrhage.")
            elif "module_of" in ast.unparse(argument):
                yield from (other for other in MODULES if other.startswith("compress.methods."))
    if by_name:
        strings = {node.value for node in ast.walk(MODULES[name]) if isinstance(node, ast.Constant)}
        yield from (other for other in MODULES if other and f"hemorrhage.{other}" in strings)


def is_own(module: str) -> bool:
    return module == "hemorrhage" or module.startswith("hemorrhage.")


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name and name != "__main__"))
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    own = room(name)
    for target in {*imported(name), *named(name)} - {""}:
        allowed = (
            target == name
            or room(target) == own
            or any(target == other or target.startswith(f"{other}.") for other in ROOMS[own])
        )
        assert allowed, f"{name} ({own}) imports {target}; docs/ARCHITECTURE.md allows {sorted(ROOMS[own])}"


def test_no_import_circles_also_none_behind_importlib() -> None:
    graph = {name: {*imported(name), *named(name)} - {"", name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_module_that_is_imported_by_a_string_is_there() -> None:
    for name in MODULES:
        assert set(named(name)) <= set(MODULES), name


def test_the_table_names_rooms_that_are_there_and_no_permission_that_nobody_uses() -> None:
    for own, allowed in ROOMS.items():
        inside = [name for name in MODULES if name and room(name) == own]
        assert inside, f"the room {own} is empty"
        targets = {target for name in inside for target in {*imported(name), *named(name)}}
        for other in allowed:
            used = any(target == other or target.startswith(f"{other}.") for target in targets)
            assert used, f"{own} imports nothing of {other}"
