"""The text step: a corpus as documents and as tokens of the base model's tokenizer.

python -m hemorrhage.data.texts OUT --corpus prose --base DIR --data '{"source": "embedded"}'
    --needs '{"calibration": 65536, "evaluation": 40960}'
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from hemorrhage.data.source import DataSource
from hemorrhage.data.texts.entry import Entry
from hemorrhage.runtime.artifact import MANIFEST, read_manifest, write_manifest, writing
from hemorrhage.runtime.step import InputError, start

SOURCES = ("embedded", "mirror", "hub")


class Document(TypedDict):
    """A row of ``documents.parquet``."""

    split: str
    document: int
    text: str


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.texts", description="prepare a corpus")
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model, for its tokenizer")
    parser.add_argument("--data", type=json.loads, required=True, help="source of the corpus, as JSON")
    parser.add_argument("--needs", type=json.loads, required=True, help="tokens needed of each split, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.corpus, arguments.base, arguments.data, arguments.needs, arguments.out)


def prepare(corpus: str, base: Path, data: DataSource, needs: dict[str, int], out: Path) -> None:
    """Write the documents and tokens of ``corpus`` into ``out``.

    Raises InputError where the source is unknown or lacks the corpus, and where a split has fewer tokens
    than ``needs`` says.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save_file

    documents, join, entry = read(corpus, data)
    tokens = {split: tokenize(base, join.join(texts)) for split, texts in documents.items()}
    _check_ids(corpus, base, max(itertools.chain.from_iterable(tokens.values()), default=0))
    for split, needed in needs.items():
        if len(tokens[split]) < needed:
            raise InputError(f"corpus {corpus}: {split} has {len(tokens[split])} tokens, but {needed} are needed")
    rows: list[Document] = [
        {"split": split, "document": number, "text": text}
        for split, texts in documents.items()
        for number, text in enumerate(texts)
    ]
    with writing(out) as folder:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")
        save_file(
            {split: np.array(ids, dtype=np.int32) for split, ids in tokens.items()},
            folder / "tokens.safetensors",
        )
        write_manifest(
            folder,
            corpus=corpus,
            source=data,
            repository=None if entry is None else asdict(entry),
            join=join,
            sha256=digest(rows),
            tokens={split: len(ids) for split, ids in tokens.items()},
            documents={split: len(texts) for split, texts in documents.items()},
        )


def read(corpus: str, data: DataSource) -> tuple[dict[str, list[str]], str, Entry | None]:
    """Read the documents of both splits, the string that joins them, and the corpus's entry in the catalogue."""
    source = data["source"]
    if source not in SOURCES:
        raise InputError(f"data.source: {source!r} is unknown; allowed: {', '.join(SOURCES)}")
    # Imported by name, since an address follows imports: a change of another source or of another corpus is
    # none of this text's business. hemorrhage.data.texts.repositories.identity names what is imported here.
    reader = importlib.import_module(f"hemorrhage.data.texts.{source}")
    if source == "embedded":
        return reader.documents(corpus), reader.JOIN, None
    catalogue = importlib.import_module("hemorrhage.data.texts.catalogue").CATALOGUE
    if corpus not in catalogue:
        raise InputError(f"corpus {corpus!r} is in no repository; allowed: {', '.join(catalogue)}")
    entry: Entry = catalogue[corpus]
    return reader.documents(corpus, entry, data), entry.join, entry


def tokenize(base: Path, text: str) -> list[int]:
    """Return the token ids of ``text`` as one piece, without special tokens, by the tokenizer in ``base``."""
    # The library itself: transformers would import torch, seconds for nothing.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    # A file that was saved while it trained cuts and pads every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


def _check_ids(corpus: str, base: Path, largest: int) -> None:
    """Raise InputError where a text holds a token that the base model has no embedding of."""
    rows = read_manifest(base).get("vocabulary") if (base / MANIFEST).is_file() else None
    if rows is not None and largest >= rows:
        raise InputError(f"corpus {corpus} has the token {largest}, and the model's embedding has {rows} rows")


def digest(rows: list[Document]) -> str:
    """Return the SHA-256 of the splits, numbers and texts of all documents."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()
