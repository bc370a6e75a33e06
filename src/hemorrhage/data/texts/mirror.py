"""Corpora from a folder laid out like the hub: ``<org>/<name>/<config>/<split>-*.parquet``."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.data.source import Mirror
from hemorrhage.data.texts.entry import Entry, arrange, columns, mirror_files, pattern
from hemorrhage.runtime.step import InputError


def documents(corpus: str, entry: Entry, data: Mirror) -> dict[str, list[str]]:
    """Read the documents of both splits of ``corpus``, which ``entry`` describes, in the folder ``data["path"]``.

    Raises InputError where a file or a column is missing.
    """
    from pyarrow import parquet

    folder = Path(data["path"])
    rows: dict[str, list[dict[str, str]]] = {}
    for split in dict.fromkeys((entry.calibration, entry.evaluation)):
        files = mirror_files(entry, folder, split)
        if not files:
            raise InputError(f"corpus {corpus}: no file {pattern(entry, split)} in {folder}")
        rows[split] = []
        for file in files:
            lacking = set(columns(entry)) - set(parquet.read_schema(file).names)
            if lacking:
                raise InputError(f"corpus {corpus}: {file} has no column {', '.join(sorted(lacking))}")
            rows[split] += parquet.read_table(file, columns=columns(entry)).to_pylist()
    return arrange(entry, rows)
