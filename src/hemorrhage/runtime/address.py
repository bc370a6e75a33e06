"""Addresses: the identity of an output is a hash of exactly what it depends on.

An output lies at a path that contains its address, so that it is either there and right, or absent.
Nothing is ever judged by its age.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, Union

from hemorrhage.runtime.digest import Sources

JsonValue: TypeAlias = Union[bool, int, float, str, "Sequence[JsonValue]", "Json", None]
Json: TypeAlias = Mapping[str, JsonValue]
"""Plain JSON: settings as an address holds them and as a step gets them."""

SOURCE = Path(__file__).resolve().parents[1]
PROGRAMS = SOURCE / "__pycache__" / "programs.json"
"""Digests of programs: like bytecode it is made of the sources, and may be missing."""

ADDRESS_LENGTH = 12
"""Hexadecimal digits of an address: 48 bits, so 10,000 outputs collide with probability 2e-7."""


def address(*parts: object) -> str:
    """Return the address of an output made from JSON-serialisable ``parts``: settings, programs, input addresses."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:ADDRESS_LENGTH]


@functools.cache
def program(module: str) -> str:
    """Return the digest of a module of this package and of every definition of this package that it reaches.

    hemorrhage.runtime.digest says what counts of a definition. Modules found by name at run time (a method, a
    strategy) are not seen: the plan names them.
    """
    known = _known()
    if module not in known:
        known[module] = _sources().program(module)[:ADDRESS_LENGTH]
        with contextlib.suppress(OSError):
            _replace(PROGRAMS, json.dumps({_sources().version: known}))
    return known[module]


def modules_of(module: str) -> set[str]:
    """Name the modules of this package that a module of it loads when it runs."""
    return _sources().modules_of(module)


@functools.cache
def _sources() -> Sources:
    return Sources(SOURCE)


@functools.cache
def _known() -> dict[str, str]:
    """Digests that an earlier process made of these very sources: it takes a second to read them all."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known: dict[str, str] = json.loads(PROGRAMS.read_text(encoding="utf-8")).get(_sources().version, {})
        return known
    return {}


def fingerprint(path: Path, memory: Path, files: Sequence[Path] | None = None) -> str:
    """Return the SHA-256 of a file, or of a folder's files and their names, read again only when size or time changed.

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
    _replace(memory, json.dumps(known))
    return address(digests)


def _replace(file: Path, text: str) -> None:
    """Write a file that other processes read and write, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(file)
