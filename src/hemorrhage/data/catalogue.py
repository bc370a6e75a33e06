"""Where the corpora of data.source ``mirror`` and ``hub`` lie, and how their rows become a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A corpus in a data set repository. ``calibration`` and ``evaluation`` are names of its splits.

    Where both are the same split, its documents are dealt out in turn. ``template`` makes a document of a
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


CATALOGUE = {
    # Rows are lines; "\n\n".join(rows) is the text that papers report WikiText-2 perplexity on. Articles
    # are joined back from the rows between headings, so that the whole text is the same character for
    # character. Calibration on the validation split: mirrors often lack the train split.
    "wikitext2": Entry(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "test", "{text}", heading=r" = [^=].* = \n"
    ),
    # Mikolov's preparation; joined as by GPTQ (ptb-new), SparseGPT and Wanda.
    "ptb": Entry("ptb-text-only/ptb_text_only", "penn_treebank", "train", "test", "{sentence}", join=" "),
    # Joined as by GPTQ, SparseGPT and Wanda. Mirrors hold a slice as one split; of the hub, the first
    # shard of the validation split is read.
    "c4": Entry(
        "allenai/c4",
        "en.slice",
        "train",
        "train",
        "{text}",
        join=" ",
        hub_files="en/c4-validation.00000-of-00008.json.gz",
        hub_rows=2200,
    ),
    "mbpp": Entry("google-research-datasets/mbpp", "full", "train", "test", '"""\n{text}\n"""\n{code}'),
    "gsm8k": Entry("openai/gsm8k", "main", "train", "test", "Question: {question}\nAnswer: {answer}"),
    # The human texts of the decoding studies (arXiv 2210.15097, 2402.06925).
    "wikinews": Entry("continuation", "wikinews", "test", "test", "{text}", on_hub=False),
}
"""Corpus -> where it lies. Licences are the data sets' own; PTB may not be redistributed."""


def columns(entry: Entry) -> list[str]:
    """The columns of a row that the template reads."""
    return re.findall(r"{(\w+)}", entry.template)


def pattern(entry: Entry, split: str) -> str:
    """Glob pattern of a split's files in a mirror folder: ``<org>/<name>/<config>/<split>-*.parquet``."""
    return f"{entry.repository}/{entry.config}/{split}-*.parquet"


def mirror_files(entry: Entry, folder: Path, split: str) -> list[Path]:
    """The files of a split in a mirror folder, in order; empty where there are none."""
    return sorted(folder.glob(pattern(entry, split)))


def arrange(entry: Entry, rows: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """Documents of both splits from the rows of the repository's splits, ``{split name: rows}``."""
    made = {split: _documents(entry, found) for split, found in rows.items()}
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
