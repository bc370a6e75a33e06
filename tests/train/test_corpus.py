"""The training text: split by documents, each paragraph once, nothing that models are measured on."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from hemorrhage.data.texts.embedded import LEGAL
from hemorrhage.data.texts.embedded import documents as embedded
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from hemorrhage.train import corpus
from hemorrhage.train.documents import Source, read_package
from hemorrhage.train.duplicates import Runs
from hemorrhage.train.packages import versions
from tests.train.made import documents


def sources(count: int) -> list[Source]:
    texts = documents(4 * count, seed=5)
    made = [Source("docs", f"docs {number}", tuple(texts[2 * number : 2 * number + 2])) for number in range(count)]
    code = [
        (f"import os\n\ndef f{number}(): return {number}", " ".join(f"name{number}_{i}" for i in range(80)))
        for number in range(count)
    ]
    return made + [Source("code", f"code {number}", each) for number, each in enumerate(code)]


def test_a_document_is_in_one_split_and_its_order_is_that_of_a_hash() -> None:
    rows = corpus.arrange(sources(100), [])
    table = pd.DataFrame(rows)
    assert {(row["part"], row["split"]) for row in rows} >= {("docs", "train"), ("code", "train")}
    assert not table.duplicated("name").any()
    assert rows == corpus.arrange(sources(100)[::-1], [])
    assert list(table["part"]) == sorted(table["part"], reverse=True)


def test_measured_text_is_left_out_to_the_last_run() -> None:
    made = sources(40)
    measured = [made[3].paragraphs[0], made[60].paragraphs[1]]
    rows = corpus.arrange(made, measured)
    runs = Runs()
    forbidden = {run for text in measured for run in runs.of(text).tolist()}
    assert not any(forbidden & {*runs.of(row["text"]).tolist()} for row in rows)


def test_a_real_package_shares_nothing_with_the_embedded_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all packages: that takes a minute. scipy's own would be the hardest, since it quotes numpy."""
    measured = corpus.measured_texts()
    assert len(measured) > sum(map(len, embedded("prose").values()))
    rows = corpus.arrange(list(read_package("jinja2")), measured)
    assert sum(len(row["text"]) for row in rows) > 100_000
    assert not any(LEGAL.search(row["text"]) for row in rows)
    forbidden = {run for text in measured for run in thirteen_words(text)}
    assert not any(forbidden & thirteen_words(row["text"]) for row in rows)


def thirteen_words(text: str) -> set[tuple[str, ...]]:
    """Every 13 words in a row: letters, digits and underscores, in small letters."""
    words = re.split(r"[^\w]+", text.lower())
    words = [word for word in words if word]
    return {tuple(words[place : place + 13]) for place in range(len(words) - 12)}


def test_the_folder_says_what_it_was_made_of(tmp_path: Path) -> None:
    rows = corpus.arrange(sources(40), [])
    corpus.write(rows, {"versions": {"torch": "1"}}, tmp_path / "text")
    manifest = read_manifest(tmp_path / "text")
    assert manifest["versions"] == {"torch": "1"}
    assert manifest["documents"] == len(rows)
    assert len(pd.read_parquet(tmp_path / "text/documents.parquet")) == len(rows)


def test_other_versions_than_the_plan_saw_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the installed packages are not those that the plan saw"):
        corpus.prepare({"versions": {**versions(), "torch": "0"}}, tmp_path / "text")
