"""Corpora of the hub at a commit."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from pyarrow import parquet

from hemorrhage.data.source import Hub, Mirror
from hemorrhage.data.texts import hub, mirror
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.entry import mirror_files
from tests.corpora import write_mirror

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Table(list[dict[str, str]]):
    """As much of a datasets.Dataset as is used."""

    def select(self, numbers: range) -> Table:
        return Table(self[number] for number in numbers)

    def select_columns(self, names: list[str]) -> Table:
        return Table({name: row[name] for name in names} for row in self)

    def to_list(self) -> list[dict[str, str]]:
        return list(self)


def test_hub_asks_for_the_pinned_commit_and_gives_what_a_mirror_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Mirror(source="mirror", path=str(write_mirror(tmp_path)))
    asked = []

    def load_dataset(repository: str, config: str | None = None, **options: object) -> Table:
        asked.append((repository, config, options))
        (entry,) = [entry for entry in CATALOGUE.values() if entry.repository == repository]
        rows = [parquet.read_table(file).to_pylist() for file in mirror_files(entry, tmp_path, str(options["split"]))]
        return Table(rows[0])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for corpus, entry in CATALOGUE.items():
        data = Hub(source="hub", revisions={entry.repository: COMMIT})
        if entry.on_hub:
            assert hub.documents(corpus, entry, data) == mirror.documents(corpus, entry, local)
            assert all(options["revision"] == COMMIT for _, _, options in asked)
        else:
            with pytest.raises(ValueError, match="not on the hub"):
                hub.documents(corpus, entry, data)
    (c4,) = [options for repository, _, options in asked if repository == "allenai/c4"]
    assert c4["data_files"] == {"train": "en/c4-validation.00000-of-00008.json.gz"}
    with pytest.raises(ValueError, match="corpus ptb needs the commit of ptb-text-only/ptb_text_only"):
        hub.documents("ptb", CATALOGUE["ptb"], Hub(source="hub", revisions={}))
