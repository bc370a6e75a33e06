"""Corpora of the Hugging Face hub at pinned commits."""

from __future__ import annotations

import os
from typing import Any

from hemorrhage.data.entry import Entry, arrange, columns
from hemorrhage.network import fetched


def documents(corpus: str, entry: Entry, data: dict[str, Any]) -> dict[str, list[str]]:
    """Documents of both splits of ``corpus`` at the commit that ``data["revisions"]`` gives its repository.

    Raises ValueError where there is no commit for it, ConnectionError where the network stays lost; what else the
    download raises passes through.
    """
    if not entry.on_hub:
        raise ValueError(f"corpus {corpus} is not on the hub; data.source mirror can hold it")
    if entry.repository not in data["revisions"]:
        raise ValueError(f"corpus {corpus} needs the commit of {entry.repository} in data.revisions")
    revision = data["revisions"][entry.repository]
    splits = dict.fromkeys((entry.calibration, entry.evaluation))
    return arrange(entry, {split: _rows(entry, split, revision) for split in splits})


def _rows(entry: Entry, split: str, revision: str) -> list[dict[str, str]]:
    # The steps forbid network access; this one is asked for. The library reads the variable when imported.
    os.environ["HF_HUB_OFFLINE"] = "0"
    from datasets import load_dataset

    def fetch() -> Any:
        if entry.hub_files:
            return load_dataset(entry.repository, data_files={split: entry.hub_files}, split=split, revision=revision)
        return load_dataset(entry.repository, entry.config, split=split, revision=revision)

    table = fetched(entry.repository, fetch)
    if entry.hub_rows:
        table = table.select(range(min(entry.hub_rows, len(table))))
    return table.select_columns(columns(entry)).to_list()
