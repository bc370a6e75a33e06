"""Corpora of a folder in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hemorrhage.data.source import Mirror
from hemorrhage.data.texts import mirror
from hemorrhage.data.texts.__main__ import prepare
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.entry import mirror_files
from hemorrhage.data.texts.repositories import reachable
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import REPOSITORY_CORPORA
from tests.conftest import MIRROR, SOURCES
from tests.corpora import LINES, write_mirror


@pytest.mark.parametrize("corpus", REPOSITORY_CORPORA)
def test_mirror_gives_every_corpus_with_disjoint_splits(corpus: str, tiny: Path, tmp_path: Path) -> None:
    data = Mirror(source="mirror", path=str(write_mirror(tmp_path / "hf")))
    assert reachable(corpus, data) is None
    found = mirror.documents(corpus, CATALOGUE[corpus], data)
    if CATALOGUE[corpus].heading is None:
        assert not set(found["calibration"]) & set(found["evaluation"])
    prepare(corpus, tiny, data, {"calibration": 3, "evaluation": 3}, tmp_path / "text")
    manifest = read_manifest(tmp_path / "text")
    assert manifest["join"] == CATALOGUE[corpus].join
    assert manifest["repository"]["repository"] == CATALOGUE[corpus].repository


def test_wikitext_articles_join_to_the_text_of_the_papers(tmp_path: Path) -> None:
    data = Mirror(source="mirror", path=str(write_mirror(tmp_path)))
    articles = mirror.documents("wikitext2", CATALOGUE["wikitext2"], data)["evaluation"]
    assert len(articles) == 2
    assert articles[1].startswith(" = Second = \n")
    assert "\n\n".join(articles) == "\n\n".join(LINES)


@pytest.mark.parametrize("source", SOURCES)
def test_wikitext_joins_to_the_rows_of_its_files(source: str, tmp_path: Path) -> None:
    folder = MIRROR if source == "real" else write_mirror(tmp_path)
    data = Mirror(source="mirror", path=str(folder))
    found = mirror.documents("wikitext2", CATALOGUE["wikitext2"], data)
    entry = CATALOGUE["wikitext2"]
    for split, name in (("calibration", "validation"), ("evaluation", "test")):
        (file,) = mirror_files(entry, folder, name)
        rows = parquet.read_table(file)["text"].to_pylist()
        assert "\n\n".join(found[split]) == "\n\n".join(rows)
        assert len(found[split]) in ({60, 61, 62} if source == "real" else {2})
    assert all(reachable(corpus, data) is None for corpus in REPOSITORY_CORPORA)


def test_windows_line_ends_of_mbpp_become_plain_ones(tmp_path: Path) -> None:
    folder = write_mirror(tmp_path)
    file = folder / "google-research-datasets/mbpp/full/train-00000-of-00001.parquet"
    parquet.write_table(pa.table({"text": ["Add."], "code": ["def f(a):\r\n  return a"]}), file)
    found = mirror.documents("mbpp", CATALOGUE["mbpp"], Mirror(source="mirror", path=str(folder)))
    assert found["calibration"] == ['"""\nAdd.\n"""\ndef f(a):\n  return a']


def test_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_mirror(tmp_path)
    file = folder / "openai/gsm8k/main/test-00000-of-00001.parquet"
    parquet.write_table(pa.table({"question": ["?"]}), file)
    with pytest.raises(ValueError, match="has no column answer"):
        mirror.documents("gsm8k", CATALOGUE["gsm8k"], Mirror(source="mirror", path=str(folder)))
