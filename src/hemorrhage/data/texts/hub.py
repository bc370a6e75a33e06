"""Corpora of the Hugging Face hub at pinned commits."""

from __future__ import annotations

from hemorrhage.data.source import Hub
from hemorrhage.data.texts.entry import Entry, arrange, columns
from hemorrhage.runtime.network import dataset
from hemorrhage.runtime.step import InputError


def documents(corpus: str, entry: Entry, data: Hub) -> dict[str, list[str]]:
    """Read the documents of both splits of ``corpus`` at the commit that ``data["revisions"]`` gives its repository.

    Raises InputError where there is no commit for it, ConnectionError where the network stays lost; what else the
    download raises passes through.
    """
    if not entry.on_hub:
        raise InputError(f"corpus {corpus} is not on the hub; data.source mirror can hold it")
    if entry.repository not in data["revisions"]:
        raise InputError(f"corpus {corpus} needs the commit of {entry.repository} in data.revisions")
    revision = data["revisions"][entry.repository]
    splits = dict.fromkeys((entry.calibration, entry.evaluation))
    return arrange(entry, {split: _rows(entry, split, revision) for split in splits})


def _rows(entry: Entry, split: str, revision: str) -> list[dict[str, str]]:
    table = dataset(entry.repository, entry.config, split, revision, entry.hub_files)
    if entry.hub_rows:
        table = table.select(range(min(entry.hub_rows, len(table))))
    rows: list[dict[str, str]] = table.select_columns(columns(entry)).to_list()
    return rows
