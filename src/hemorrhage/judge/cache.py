"""Where judgements keep what they computed: bases, references and evaluations by their addresses, bounded in size.

The folder is that of the XDG base directories: ``$XDG_CACHE_HOME/hemorrhage``, else ``~/.cache/hemorrhage``.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hemorrhage.runtime.artifact import MANIFEST
from hemorrhage.runtime.command import CommandError

SCRATCH = "results-"
"""How the folder of a judgement's rows and page starts; it goes when the judgement ends."""

LIMIT_GB = 20.0
"""Bytes of a cache that is not told otherwise, in units of 10^9."""

DATA = "data"


@dataclass(frozen=True)
class Entry:
    """An output of the cache: its folder, bytes on disk, and when a judgement used it last."""

    folder: Path
    bytes: int
    used: float


def default_folder() -> Path:
    """Return the folder of this user's cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "hemorrhage"


def size_gb(text: str) -> float:
    """Return a size of at least 0 of the command line."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise ArgumentTypeError(f"{text} is not a number of at least 0")
    return size


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache for one judgement at a time; another says that it waits. What a killed one left is removed.

    Raises CommandError where the cache can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{folder} can't be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another judgement, which uses {folder}", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left)
        yield


def entries(folder: Path) -> list[Entry]:
    """Return all outputs, the one that was used longest ago first."""
    outputs = []
    for output in (folder / DATA).glob("*/*/*"):
        if output.is_dir():
            marker = output / MANIFEST
            used = (marker if marker.is_file() else output).stat().st_mtime
            size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
            outputs.append(Entry(output, size, used))
    return sorted(outputs, key=lambda entry: entry.used)


def touch(manifests: Iterable[Path]) -> None:
    """Note that outputs were used now."""
    for manifest in manifests:
        if manifest.is_file():
            os.utime(manifest)


def trim(folder: Path, limit_gb: float, keep: Iterable[Path] = ()) -> list[Entry]:
    """Remove the outputs that were used longest ago until the others fit; those in ``keep`` stay. Return them."""
    kept, known = {path.resolve() for path in keep}, entries(folder)
    total, removed = sum(entry.bytes for entry in known), []
    for entry in known:
        if total <= limit_gb * 1e9:
            break
        if entry.folder.resolve() not in kept:
            shutil.rmtree(entry.folder)
            total -= entry.bytes
            removed.append(entry)
    return removed


def clear(folder: Path) -> int:
    """Remove everything; return the bytes that were freed."""
    freed = sum(entry.bytes for entry in entries(folder))
    for name in (DATA, "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return freed
