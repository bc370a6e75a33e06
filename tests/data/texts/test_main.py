"""The step that prepares a text."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from pyarrow import parquet
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from hemorrhage.data.source import Embedded, Mirror
from hemorrhage.data.texts.__main__ import prepare
from hemorrhage.runtime.artifact import read_manifest

EMBEDDED = Embedded(source="embedded")


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
        prepare("poems", tiny, Mirror(source="mirror", path="x"), {}, tmp_path / "text")
    ftp = cast("Embedded", {"source": "ftp"})
    with pytest.raises(ValueError, match="allowed: embedded, mirror, hub"):
        prepare("prose", tiny, ftp, {}, tmp_path / "text")
