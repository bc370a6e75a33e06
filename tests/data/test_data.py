"""Corpora: embedded ones, mirrors and the hub; splits that share nothing; clear errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from hemorrhage.data.texts import embedded, hub, mirror
from hemorrhage.data.texts.__main__ import prepare
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.entry import columns, mirror_files
from hemorrhage.data.texts.repositories import identity, reachable
from hemorrhage.runtime import address
from hemorrhage.runtime.address import program
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import EMBEDDED_CORPORA, REPOSITORY_CORPORA

MIRROR = Path(__file__).resolve().parents[3] / "shared" / "data" / "hf"
EMBEDDED = {"source": "embedded"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = [
    "",
    " = First = \n",
    "",
    " One line . \n",
    " = = Part = = \n",
    " = Second = \n",
    " Another line . \n",
]


@pytest.fixture(scope="session")
def prose() -> dict[str, list[str]]:
    return embedded.documents("prose")


def write_mirror(folder: Path) -> Path:
    """A mirror with seven rows in every split of every corpus."""
    for entry in CATALOGUE.values():
        for split in {entry.calibration, entry.evaluation}:
            file = folder / entry.repository / entry.config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            texts = LINES if entry.heading else [f"{split} {number}" for number in range(7)]
            table = {"unused": list(range(7)), **dict.fromkeys(columns(entry), texts)}
            parquet.write_table(pa.table(table), file)
    return folder


def test_catalogue_and_registry_name_the_same_corpora() -> None:
    assert set(CATALOGUE) == set(REPOSITORY_CORPORA)
    assert all(reachable(name, EMBEDDED) is None for name in EMBEDDED_CORPORA)


def test_embedded_splits_share_no_document(prose: dict[str, list[str]]) -> None:
    for split in (prose, embedded.documents("code"), embedded.documents("humaneval")):
        assert all(text.strip() for texts in split.values() for text in texts)
        assert not set(split["calibration"]) & set(split["evaluation"])


def test_prose_has_no_paragraph_twice_and_reads_as_prose(prose: dict[str, list[str]]) -> None:
    paragraphs = [paragraph for texts in prose.values() for text in texts for paragraph in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(paragraph[0].isupper() and paragraph[-1] in ".!?" for paragraph in paragraphs)
    assert not any(mark in paragraph for paragraph in paragraphs for mark in (">>>", "::", "``", "  "))


def test_embedded_splits_are_long_enough_for_the_default_run(prose: dict[str, list[str]]) -> None:
    # SmolLM2 reads 4.5 characters of the prose and 3.7 of the code as a token.
    assert all(sum(map(len, texts)) > 4.6 * 60_000 for texts in prose.values())
    assert all(sum(map(len, texts)) > 3.8 * 60_000 for texts in embedded.documents("code").values())


def test_plain_takes_marks_away_and_keeps_words() -> None:
    marked = "* See :func:`~numpy.linalg.norm`, ``x`` and *both* [1]_,\n  which :class:`the class <a.B>` needs."
    assert embedded._plain(marked) == "See norm, x and both, which the class needs."


def test_code_and_humaneval_are_programs() -> None:
    for corpus in ("code", "humaneval"):
        for texts in embedded.documents(corpus).values():
            for text in texts:
                compile(text, corpus, "exec")
    assert sum(map(len, embedded.documents("humaneval").values())) == 164


def test_prepared_text_is_the_joined_documents_in_the_tokens_of_the_base(
    tiny: Path, tmp_path: Path, prose: dict[str, list[str]]
) -> None:
    prepare("humaneval", tiny, EMBEDDED, {"calibration": 100, "evaluation": 100}, tmp_path / "text")
    manifest = read_manifest(tmp_path / "text")
    tokens = load_file(tmp_path / "text" / "tokens.safetensors")
    table = parquet.read_table(tmp_path / "text" / "documents.parquet").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for split in ("calibration", "evaluation"):
        texts = [row["text"] for row in table if row["split"] == split]
        assert [row["document"] for row in table if row["split"] == split] == list(range(len(texts)))
        assert tokens[split].dtype == "int32"
        expected = tokenizer("\n\n".join(texts), add_special_tokens=False).input_ids
        assert tokens[split].tolist() == expected
        assert manifest["tokens"][split] == len(expected)
    assert manifest["corpus"] == "humaneval"
    assert manifest["source"] == EMBEDDED
    prepare("humaneval", tiny, EMBEDDED, {}, tmp_path / "again")
    assert read_manifest(tmp_path / "again")["sha256"] == manifest["sha256"]


def test_too_few_tokens_name_corpus_split_and_both_numbers(tiny: Path, tmp_path: Path) -> None:
    needs = {"calibration": 10, "evaluation": 10**9}
    with pytest.raises(ValueError, match=r"^corpus humaneval: evaluation has \d+ tokens, but 1000000000 are needed$"):
        prepare("humaneval", tiny, EMBEDDED, needs, tmp_path / "text")
    assert list(tmp_path.iterdir()) == []


def test_unknown_corpora_and_sources_are_one_clear_line(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: prose, code, humaneval"):
        prepare("poems", tiny, EMBEDDED, {}, tmp_path / "text")
    with pytest.raises(ValueError, match="allowed: wikitext2, ptb, c4, mbpp, gsm8k, wikinews"):
        prepare("poems", tiny, {"source": "mirror", "path": "x"}, {}, tmp_path / "text")
    with pytest.raises(ValueError, match="allowed: embedded, mirror, hub"):
        prepare("prose", tiny, {"source": "ftp"}, {}, tmp_path / "text")


@pytest.mark.parametrize("corpus", REPOSITORY_CORPORA)
def test_mirror_gives_every_corpus_with_disjoint_splits(corpus: str, tiny: Path, tmp_path: Path) -> None:
    data = {"source": "mirror", "path": str(write_mirror(tmp_path / "hf"))}
    assert reachable(corpus, data) is None
    found = mirror.documents(corpus, CATALOGUE[corpus], data)
    if CATALOGUE[corpus].heading is None:
        assert not set(found["calibration"]) & set(found["evaluation"])
    prepare(corpus, tiny, data, {"calibration": 3, "evaluation": 3}, tmp_path / "text")
    manifest = read_manifest(tmp_path / "text")
    assert manifest["join"] == CATALOGUE[corpus].join
    assert manifest["repository"]["repository"] == CATALOGUE[corpus].repository


def test_wikitext_articles_join_to_the_text_of_the_papers(tmp_path: Path) -> None:
    data = {"source": "mirror", "path": str(write_mirror(tmp_path))}
    articles = mirror.documents("wikitext2", CATALOGUE["wikitext2"], data)["evaluation"]
    assert len(articles) == 2
    assert articles[1].startswith(" = Second = \n")
    assert "\n\n".join(articles) == "\n\n".join(LINES)


@pytest.mark.skipif(not MIRROR.is_dir(), reason="no mirror beside the repository")
def test_the_real_wikitext_joins_to_the_text_of_the_papers() -> None:
    data = {"source": "mirror", "path": str(MIRROR)}
    found = mirror.documents("wikitext2", CATALOGUE["wikitext2"], data)
    entry = CATALOGUE["wikitext2"]
    for split, name in (("calibration", "validation"), ("evaluation", "test")):
        (file,) = mirror_files(entry, MIRROR, name)
        rows = parquet.read_table(file)["text"].to_pylist()
        assert "\n\n".join(found[split]) == "\n\n".join(rows)
        assert 60 <= len(found[split]) <= 62
    assert all(reachable(corpus, data) is None for corpus in REPOSITORY_CORPORA)


def test_windows_line_ends_of_mbpp_become_plain_ones(tmp_path: Path) -> None:
    folder = write_mirror(tmp_path)
    file = folder / "google-research-datasets/mbpp/full/train-00000-of-00001.parquet"
    parquet.write_table(pa.table({"text": ["Add."], "code": ["def f(a):\r\n  return a"]}), file)
    found = mirror.documents("mbpp", CATALOGUE["mbpp"], {"source": "mirror", "path": str(folder)})
    assert found["calibration"] == ['"""\nAdd.\n"""\ndef f(a):\n  return a']


def test_unreachable_texts_are_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    nowhere = {"source": "mirror", "path": str(tmp_path / "nowhere")}
    assert reachable("ptb", nowhere) == f"corpus ptb: data.path {tmp_path}/nowhere is not a folder"
    folder = write_mirror(tmp_path / "hf")
    (folder / "openai/gsm8k/main/test-00000-of-00001.parquet").unlink()
    data = {"source": "mirror", "path": str(folder)}
    assert reachable("gsm8k", data) == f"corpus gsm8k: no file openai/gsm8k/main/test-*.parquet in {folder}"
    with pytest.raises(ValueError, match=r"corpus gsm8k: no file openai/gsm8k/main/test-\*\.parquet"):
        mirror.documents("gsm8k", CATALOGUE["gsm8k"], data)
    assert reachable("poems", data) == (
        "corpus 'poems' is in no repository; allowed: wikitext2, ptb, c4, mbpp, gsm8k, wikinews"
    )
    pinned = {"source": "hub", "revisions": {"openai/gsm8k": COMMIT}}
    assert reachable("gsm8k", pinned) is None
    assert reachable("mbpp", pinned) == (
        "corpus mbpp needs the commit of google-research-datasets/mbpp in data.revisions"
    )
    assert reachable("wikinews", pinned) == "corpus wikinews is not on the hub; data.source mirror can hold it"


def test_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_mirror(tmp_path)
    file = folder / "openai/gsm8k/main/test-00000-of-00001.parquet"
    parquet.write_table(pa.table({"question": ["?"]}), file)
    with pytest.raises(ValueError, match="has no column answer"):
        mirror.documents("gsm8k", CATALOGUE["gsm8k"], {"source": "mirror", "path": str(folder)})


def test_identity_is_what_the_files_say_and_not_where_they_lie(tmp_path: Path) -> None:
    memory = tmp_path / "fingerprints.json"
    here, there = ({"source": "mirror", "path": str(write_mirror(tmp_path / name))} for name in ("a", "b"))
    assert identity("ptb", here, memory) == identity("ptb", there, memory)
    before = {corpus: identity(corpus, here, memory) for corpus in CATALOGUE}
    file = tmp_path / "a/ptb-text-only/ptb_text_only/penn_treebank/test-00000-of-00001.parquet"
    parquet.write_table(pa.table({"sentence": ["changed"]}), file)
    changed = [corpus for corpus in CATALOGUE if identity(corpus, here, memory) != before[corpus]]
    assert changed == ["ptb"]
    pinned = {"source": "hub", "revisions": {"openai/gsm8k": COMMIT, "openai/other": COMMIT[::-1]}}
    moved = {"source": "hub", "revisions": {"openai/gsm8k": COMMIT[::-1], "openai/other": COMMIT}}
    other = {"source": "hub", "revisions": {"openai/gsm8k": COMMIT, "openai/other": COMMIT}}
    assert identity("gsm8k", pinned, memory) == identity("gsm8k", other, memory)
    assert identity("gsm8k", pinned, memory) != identity("gsm8k", moved, memory)
    json.dumps(before)


def test_address_of_a_text_follows_its_reader_and_its_own_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "fingerprints.json"
    here = {"source": "mirror", "path": str(write_mirror(tmp_path / "hf"))}
    before = {corpus: identity(corpus, here, memory) for corpus in CATALOGUE}
    monkeypatch.setitem(CATALOGUE, "c4", dataclasses.replace(CATALOGUE["c4"], join="\n"))
    assert [corpus for corpus in CATALOGUE if identity(corpus, here, memory) != before[corpus]] == ["c4"]
    assert identity("prose", EMBEDDED, memory)["program"] == program("hemorrhage.data.texts.embedded")
    # The step itself names neither the readers nor the catalogue.
    assert (
        address.modules_of("hemorrhage.data.texts.__main__")
        & {f"hemorrhage.data.{name}" for name in ("embedded", "mirror", "hub", "catalogue", "entry")}
        == set()
    )
    assert "hemorrhage.data.texts.entry" in address.modules_of("hemorrhage.data.texts.mirror")
    assert "hemorrhage.data.texts.catalogue" not in address.modules_of("hemorrhage.data.texts.mirror")


class Table(list):
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
    local = {"source": "mirror", "path": str(write_mirror(tmp_path))}
    asked = []

    def load_dataset(repository: str, config: str | None = None, **options: object) -> Table:
        asked.append((repository, config, options))
        (entry,) = [entry for entry in CATALOGUE.values() if entry.repository == repository]
        rows = [parquet.read_table(file).to_pylist() for file in mirror_files(entry, tmp_path, str(options["split"]))]
        return Table(rows[0])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for corpus, entry in CATALOGUE.items():
        data = {"source": "hub", "revisions": {entry.repository: COMMIT}}
        if entry.on_hub:
            assert hub.documents(corpus, entry, data) == mirror.documents(corpus, entry, local)
            assert all(options["revision"] == COMMIT for _, _, options in asked)
        else:
            with pytest.raises(ValueError, match="not on the hub"):
                hub.documents(corpus, entry, data)
    (c4,) = [options for repository, _, options in asked if repository == "allenai/c4"]
    assert c4["data_files"] == {"train": "en/c4-validation.00000-of-00008.json.gz"}
    with pytest.raises(ValueError, match="corpus ptb needs the commit of ptb-text-only/ptb_text_only"):
        hub.documents("ptb", CATALOGUE["ptb"], {"source": "hub", "revisions": {}})


def test_what_the_plan_imports_is_light() -> None:
    program = (
        "import json, sys; from hemorrhage.data.texts.repositories import reachable;"
        "reachable('humaneval', {'source': 'embedded'});"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "datasets", "tokenizers", "safetensors"}
    assert not heavy & set(json.loads(ran.stdout))
