"""What a benchmark measured, between two marks of a document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(document: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Put lines between the marks ``begin`` and ``end`` of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    document.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
