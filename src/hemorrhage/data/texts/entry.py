"""An entry of the catalogue: where a corpus lies in a data set repository, and how its rows become a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A corpus in a data set repository. ``calibration`` and ``evaluation`` are names of its splits.

    Where both are the same split, its documents go to one and the other in turn. ``template`` makes a document of a
    row. ``join`` stands between documents and belongs to the perplexity protocol of the data set.
    ``hub_files`` picks files of a hub repository that is too large to take whole, and ``hub_rows`` bounds
    the rows read from them; ``on_hub`` is false for sets that only a mirror has.
    """

    repository: str
    config: str
    calibration: str
    evaluation: str
    template: str
    join: str = "\n\n"
    heading: str | None = None
    hub_files: str | None = None
    hub_rows: int | None = None
    on_hub: bool = True


def columns(entry: Entry) -> list[str]:
    """List the columns of a row that the template reads."""
    return re.findall(r"{(\w+)}", entry.template)


def pattern(entry: Entry, split: str) -> str:
    """Make the glob pattern of a split's files in a mirror folder: ``<org>/<name>/<config>/<split>-*.parquet``."""
    return f"{entry.repository}/{entry.config}/{split}-*.parquet"


def mirror_files(entry: Entry, folder: Path, split: str) -> list[Path]:
    """List the files of a split in a mirror folder, in order; empty where there are none."""
    return sorted(folder.glob(pattern(entry, split)))


def arrange(entry: Entry, rows: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """Make the documents of both splits from the rows of the repository's splits, ``{split name: rows}``."""
    made = {split: _documents(entry, of_split) for split, of_split in rows.items()}
    if entry.calibration == entry.evaluation:
        whole = made[entry.calibration]
        return {"calibration": whole[0::2], "evaluation": whole[1::2]}
    return {"calibration": made[entry.calibration], "evaluation": made[entry.evaluation]}


def _documents(entry: Entry, rows: list[dict[str, str]]) -> list[str]:
    texts = [entry.template.format(**row).replace("\r\n", "\n") for row in rows]
    if entry.heading is None:
        return texts
    articles: list[list[str]] = [[]]
    for text in texts:
        # The blank row before the first heading belongs to the first article.
        if re.fullmatch(entry.heading, text) and any(map(str.strip, articles[-1])):
            articles.append([])
        articles[-1].append(text)
    return [entry.join.join(article) for article in articles]
