"""One run at a time in a folder: a lock that its process holds and that no kill can leave behind."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_held: list[TextIO] = []
"""Open files whose locks last until the process ends."""


def hold(path: Path) -> None:
    """Lock ``path`` until this process ends. Raises BlockingIOError when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("w", encoding="utf-8")
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.append(stream)


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Lock ``path`` during the block. Raises BlockingIOError when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
