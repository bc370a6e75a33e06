"""The tokenizer: the same for the same text, bytes that come back, and the text as its tokens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from hemorrhage.train import tokenizer
from tests.train.made import VOCABULARY, documents, text


def test_the_same_text_makes_the_same_tokenizer(tmp_path: Path, tokens: Path) -> None:
    folder = text(tmp_path / "text")
    tokenizer.prepare(folder, {"vocabulary": VOCABULARY}, tmp_path / "again")
    for name in ("tokenizer.json", "tokens.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tokens / name).read_bytes()


def test_every_byte_comes_back(tokens: Path) -> None:
    made = Tokenizer.from_file(str(tokens / "tokenizer.json"))
    assert made.get_vocab_size() == VOCABULARY
    assert [made.id_to_token(number) for number in range(4)] == list(tokenizer.SPECIAL)
    for said in ("the model reads", "  def f():\n\treturn 'é∂🙂'", "1234 0x7f"):
        assert made.decode(made.encode(said).ids) == said
    assert len(made.encode("1234").ids) == 4


def test_tokens_are_those_of_the_documents_each_ended(tokens: Path) -> None:
    made, stored = Tokenizer.from_file(str(tokens / "tokenizer.json")), load_file(tokens / "tokens.safetensors")
    table = pd.read_parquet(tokens.parent / "text/documents.parquet")
    for (part, split), rows in table.groupby(["part", "split"]):
        expected = [number for document in rows["text"] for number in [*made.encode(document).ids, 0]]
        assert stored[f"{part}/{split}"].tolist() == expected
        assert read_manifest(tokens)["tokens"][f"{part}/{split}"] == len(expected)


def test_a_vocabulary_larger_than_the_text_makes_is_refused() -> None:
    with pytest.raises(InputError, match=r"recipes: the text makes \d+ tokens, and vocabulary is 5000"):
        tokenizer.learn(documents(2), 5000)
