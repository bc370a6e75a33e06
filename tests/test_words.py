"""Names and types say what a thing is: counted over the whole source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

FILES = sorted((ROOT / "src" / "hemorrhage").rglob("*.py"))

MOST_UNTYPED = 79
"""``dict[str, Any]`` in the source, at most: free settings, and JSON of other programs."""


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each identifier of a module with its line: variables, parameters, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias):
            yield node.asname or node.name, node.lineno


def test_nothing_is_named_found() -> None:
    named = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in FILES
        for name, line in names(ast.parse(file.read_text(encoding="utf-8")))
        if name == "found"
    ]
    assert named == [], "say what the thing is: inputs, settings, layer_path, manifest"


def test_few_mappings_are_untyped() -> None:
    count = sum(file.read_text(encoding="utf-8").count("dict[str, Any]") for file in FILES)
    assert count <= MOST_UNTYPED
