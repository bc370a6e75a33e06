"""The step of the training text: documentation and source of installed packages, each paragraph once.

python -m hemorrhage.train.corpus OUT --spec '{"versions": {"torch": "2.14.0", ...}}'

``documents.parquet`` has a row per document. A document is ``heldout`` or ``train`` as a whole. No paragraph shares
13 words in a row with the embedded corpora that models are measured on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from hemorrhage.data.texts.embedded import documents as evaluated_documents
from hemorrhage.data.texts.embedded import missing
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start
from hemorrhage.train.documents import PARTS, Part, Source, read_package
from hemorrhage.train.duplicates import distinct
from hemorrhage.train.packages import versions
from hemorrhage.train.schema import DOCUMENTS

MEASURED = ("prose", "code", "humaneval")
"""Embedded corpora whose text is kept out, both splits."""

HELD_OUT = 4
"""Of 256 documents, as many are held out."""

LEAST = 200
"""Characters of a document that is worth one."""

JOIN: Mapping[Part, str] = {"docs": "\n", "code": "\n\n"}

log = logging.getLogger(__name__)


class Spec(TypedDict):
    """What the text is made of: the version of each package."""

    versions: dict[str, str]


class Row(TypedDict):
    """A row of documents.parquet."""

    part: Part
    split: Literal["train", "heldout"]
    name: str
    text: str


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.train.corpus", description="make the training text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--spec", type=json.loads, required=True, help="versions of the packages, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.spec, arguments.out)


def prepare(spec: Spec, out: Path) -> None:
    """Write the training text into ``out``. Raises InputError where a package is missing or of another version."""
    packages = tuple(spec["versions"])
    if spec["versions"] != versions(packages):
        raise InputError("recipes: the installed packages are not those that the plan saw; run again")
    sources = [source for package in packages for source in read_package(package)]
    write(arrange(sources, measured_texts()), spec, out)


def measured_texts() -> list[str]:
    """Return the text of the corpora that models are measured on, of those that this machine has."""
    held = [evaluated_documents(corpus) for corpus in MEASURED if missing(corpus) is None]
    return [text for splits in held for texts in splits.values() for text in texts]


def arrange(sources: Sequence[Source], measured: Sequence[str]) -> list[Row]:
    """Make the rows of the documents in the order of a hash of their names, each paragraph once in its part."""
    rows: list[Row] = []
    for part in PARTS:
        ordered = sorted((source for source in sources if source.part == part), key=_digest)
        paragraphs = [paragraph for source in ordered for paragraph in source.paragraphs]
        # A module without its imports, since others have them too, is no module.
        kept = iter(distinct(paragraphs, measured, keeps_short=part == "code").tolist())
        for source in ordered:
            text = JOIN[part].join([paragraph for paragraph in source.paragraphs if next(kept)])
            if len(text) >= LEAST:
                split: Literal["train", "heldout"] = "heldout" if _digest(source)[-1] < HELD_OUT else "train"
                rows.append({"part": part, "split": split, "name": source.name, "text": text})
    return rows


def _digest(source: Source) -> bytes:
    return hashlib.sha256(source.name.encode()).digest()


def write(rows: Sequence[Row], spec: Spec, out: Path) -> None:
    """Write documents.parquet and the manifest."""
    import pandas as pd

    table = DOCUMENTS.validate(pd.DataFrame(rows, columns=list(DOCUMENTS.columns)))
    characters = table["text"].str.len().groupby([table["part"], table["split"]]).sum()
    with writing(out) as folder:
        table.to_parquet(folder / "documents.parquet", index=False)
        write_manifest(
            folder,
            versions=spec["versions"],
            documents=len(table),
            characters={f"{part}/{split}": int(count) for (part, split), count in characters.items()},
            sha256=hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        )
    log.info("%d documents, %d characters", len(table), characters.sum())


if __name__ == "__main__":
    main()
