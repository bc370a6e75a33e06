"""Snakemake's marks of outputs whose jobs it did not see end, in ``.snakemake/incomplete``.

Outputs here are whole or absent, so that a mark on one that is there means nothing: its job was killed between the
output's last rename and Snakemake's record. A run ignores marks (profiles/default); `snakemake --report` can't be told
to.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from pathlib import Path

MARKS = Path(".snakemake/incomplete")


def remove_marks(root: Path) -> None:
    """Remove the marks of outputs that exist; their paths are relative to ``root``, where ``MARKS`` lies.

    A run that is at work misses none: it removes the mark of a job that ends, and does not mind where there is none.
    """
    folder = root / MARKS
    for mark in [file for file in folder.rglob("*") if file.is_file()]:
        output = _output(mark.relative_to(folder))
        if output is not None and (root / output).exists():
            mark.unlink(missing_ok=True)


def _output(mark: Path) -> str | None:
    """Return the path of the output that a mark is named after; a long one is a chain of folders that begin with @."""
    try:
        return urlsafe_b64decode("".join(part.removeprefix("@") for part in mark.parts)).decode()
    except ValueError:
        return None
