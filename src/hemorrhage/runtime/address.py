"""Addresses: the identity of an output is a hash of exactly what it depends on.

An output lies at a path that contains its address, so that it is either there and right, or absent.
Nothing is ever judged by its age.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "hemorrhage"
SOURCE = Path(__file__).resolve().parents[1]

ADDRESS_LENGTH = 12
"""Hexadecimal digits of an address: 48 bits, so 10,000 outputs collide with probability 2e-7."""


def address(*parts: object) -> str:
    """Address of an output made from JSON-serialisable ``parts``: settings, programs, input addresses."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:ADDRESS_LENGTH]


@functools.cache
def program(module: str) -> str:
    """Digest of a module of this package and of every module of this package that it imports.

    The digest is of the syntax trees without docstrings: comments, layout and documentation do not count.
    Imports are followed wherever they stand, inside functions too. Modules found by name at run time (a
    method, a strategy) are not seen: the plan names them.
    """
    return address(sorted((name, _tree(name)) for name in _closure(module)))


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name))
    return found


def _file(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _parse(module: str) -> ast.Module:
    file = _file(module)
    if file is None:
        raise ValueError(f"{module} is not a module of {PACKAGE}")
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _imports(module: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module}: relative imports hide what an address depends on; write {PACKAGE}.…")
            names.update([node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)])
    own = {name for name in names if name.split(".")[0] == PACKAGE}
    # A package's __init__ runs before any of its modules.
    own |= {name.rsplit(".", depth)[0] for name in own for depth in range(1, name.count(".") + 1)}
    return frozenset(name for name in own if name != PACKAGE and _file(name))


@functools.cache
def _tree(module: str) -> str:
    tree = _parse(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A string that stands alone documents; it computes nothing.
            node.body = [  # type: ignore[attr-defined]
                item
                for item in body
                if not (
                    isinstance(item, ast.Expr)
                    and isinstance(item.value, ast.Constant)
                    and isinstance(item.value.value, str)
                )
            ]
    # The text and not ast.dump, whose fields change from one version of Python to the next.
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def fingerprint(path: Path, memory: Path, files: Sequence[Path] | None = None) -> str:
    """SHA-256 of a file, or of a folder's files and their names, read again only when size or time changed.

    ``files`` are those of the folder that count, where not all do. ``memory`` is a JSON file that remembers digests by
    path, size and modification time, so that a plan over a 15 GB checkpoint costs a stat and not a read. Raises
    FileNotFoundError when ``path`` is absent.
    """
    if files is None:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        raise FileNotFoundError(path)
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    digests = []
    for file in sorted(files):
        status = file.stat()
        key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
        if key not in known:
            with file.open("rb") as stream:
                known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        digests.append((str(file.relative_to(path)), known[key]))
    memory.parent.mkdir(parents=True, exist_ok=True)
    part = memory.with_name(f"{memory.name}.{os.getpid()}")
    part.write_text(json.dumps(known))
    part.replace(memory)
    return address(digests)
