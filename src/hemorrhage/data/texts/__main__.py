"""The text step: a corpus as documents and as tokens of the base model's tokenizer.

python -m hemorrhage.data.texts OUT --corpus prose --base DIR --data '{"source": "embedded"}'
    --needs '{"calibration": 65536, "evaluation": 40960}'

``--needs``: tokens of each split. Of the evaluation split of a user's file, whose windows end where a conversation
does, it is ``windows`` of ``window`` tokens.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from dataclasses import asdict
from pathlib import Path

from hemorrhage.data.source import DataSource, TextSource
from hemorrhage.data.texts.documents import Document, digest
from hemorrhage.data.texts.entry import Entry
from hemorrhage.data.texts.tokens import check_count, check_ids, tokenize
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start

SOURCES = ("embedded", "mirror", "hub", "file")


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


def prepare(corpus: str, base: Path, data: TextSource, needs: dict[str, int], out: Path) -> None:
    """Write the documents and tokens of ``corpus`` into ``out``.

    Raises InputError where the source is unknown or lacks the corpus, and where a split has fewer tokens
    than ``needs`` says.
    """
    if data["source"] == "file":
        # Imported by name, like the other sources.
        importlib.import_module("hemorrhage.data.texts.file").prepare(corpus, base, data, needs, out)
        return
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save_file

    documents, join, entry = read(corpus, data)
    tokens = {split: tokenize(base, join.join(texts)) for split, texts in documents.items()}
    check_ids(corpus, base, max(itertools.chain.from_iterable(tokens.values()), default=0))
    for split, ids in tokens.items():
        check_count(corpus, split, len(ids), needs)
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


if __name__ == "__main__":
    main()
