"""Reach and identity of a corpus, which the plan asks for before any work.

Nothing heavy is imported here: the plan is read at every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from hemorrhage.data.source import TextSource
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.entry import Entry, mirror_files, pattern
from hemorrhage.runtime.address import Json, fingerprint, program


def reachable(corpus: str, data: TextSource) -> str | None:
    """Say in one line what is missing before ``corpus`` can be read from ``data``; None where nothing is.

    The hub itself is not asked.
    """
    if data["source"] == "embedded":
        from hemorrhage.data.texts.embedded import missing

        return missing(corpus)
    if data["source"] == "file":
        from hemorrhage.data.texts.records import problem

        return problem(Path(data["path"]))
    entry = CATALOGUE.get(corpus)
    if entry is None:
        return f"corpus {corpus!r} is in no repository; allowed: {', '.join(CATALOGUE)}"
    if data["source"] == "hub":
        return _missing_on_hub(corpus, entry, data["revisions"])
    return _missing_in_mirror(corpus, entry, Path(data["path"]))


def _missing_on_hub(corpus: str, entry: Entry, revisions: Mapping[str, str]) -> str | None:
    if not entry.on_hub:
        return f"corpus {corpus} is not on the hub; data.source mirror can hold it"
    if entry.repository not in revisions:
        return f"corpus {corpus} needs the commit of {entry.repository} in data.revisions"
    return None


def _missing_in_mirror(corpus: str, entry: Entry, folder: Path) -> str | None:
    if not folder.is_dir():
        return f"corpus {corpus}: data.path {folder} is not a folder"
    for split in dict.fromkeys((entry.calibration, entry.evaluation)):
        if not mirror_files(entry, folder, split):
            return f"corpus {corpus}: no file {pattern(entry, split)} in {folder}"
    return None


def identity(corpus: str, data: TextSource, memory: Path) -> Json:
    """Return what the address of a prepared corpus holds of its source next to the code of the step.

    That is the code that reads this kind of source, the corpus's own entry in the catalogue, and digests of
    its files or the pinned commit. Where a mirror lies does not count. An embedded corpus is what this
    machine's Python and packages make of it; the text's own hash says which text it was. Of a user's file it is its
    digest, and how it is read. ``memory`` is that of hemorrhage.runtime.address.fingerprint.
    """
    reader: Json = {
        "source": data["source"],
        "program": program(f"hemorrhage.data.texts.{data['source']}"),
    }
    if data["source"] == "embedded":
        return reader
    if data["source"] == "file":
        file = Path(data["path"])
        content: Json = {"suffix": file.suffix, "sha256": fingerprint(file, memory)}
        return {**reader, **content, "split": data["split"], "score": data["score"]}
    entry = CATALOGUE[corpus]
    if data["source"] == "hub":
        return {**reader, "entry": asdict(entry), "revision": data["revisions"][entry.repository]}
    files = {
        file.name: fingerprint(file, memory)
        for split in (entry.calibration, entry.evaluation)
        for file in mirror_files(entry, Path(data["path"]), split)
    }
    return {**reader, "entry": asdict(entry), "files": files}
