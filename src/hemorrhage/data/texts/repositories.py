"""What the plan asks about a corpus before any work: is it there, and what is its identity?

Nothing heavy is imported here: the plan is read at every start.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.entry import mirror_files, pattern
from hemorrhage.runtime.address import fingerprint, program


def reachable(corpus: str, data: dict[str, Any]) -> str | None:
    """One line that says what is missing before ``corpus`` can be read from ``data``, or None.

    ``data`` is ``{"source": "embedded"}``, ``{"source": "mirror", "path": folder}`` or ``{"source": "hub",
    "revisions": {repository: commit}}``. The hub itself is not asked.
    """
    if data["source"] == "embedded":
        from hemorrhage.data.texts.embedded import missing

        return missing(corpus)
    entry = CATALOGUE.get(corpus)
    if entry is None:
        return f"corpus {corpus!r} is in no repository; allowed: {', '.join(CATALOGUE)}"
    if data["source"] == "hub":
        if not entry.on_hub:
            return f"corpus {corpus} is not on the hub; data.source mirror can hold it"
        if entry.repository not in data["revisions"]:
            return f"corpus {corpus} needs the commit of {entry.repository} in data.revisions"
        return None
    folder = Path(data["path"])
    if not folder.is_dir():
        return f"corpus {corpus}: data.path {folder} is not a folder"
    for split in dict.fromkeys((entry.calibration, entry.evaluation)):
        if not mirror_files(entry, folder, split):
            return f"corpus {corpus}: no file {pattern(entry, split)} in {folder}"
    return None


def identity(corpus: str, data: dict[str, Any], memory: Path) -> dict[str, Any]:
    """What the address of a prepared corpus holds of its source beside the code of the step.

    That is the code that reads this kind of source, the corpus's own entry in the catalogue, and digests of
    its files or the pinned commit. Where a mirror lies does not count. An embedded corpus is what this
    machine's Python and packages make of it; the text's own hash says which text it was. ``memory`` is that
    of hemorrhage.runtime.address.fingerprint.
    """
    reader: dict[str, Any] = {
        "source": data["source"],
        "program": program(f"hemorrhage.data.texts.{data['source']}"),
    }
    if data["source"] == "embedded":
        return reader
    entry = CATALOGUE[corpus]
    reader["entry"] = asdict(entry)
    if data["source"] == "hub":
        return {**reader, "revision": data["revisions"][entry.repository]}
    files = {
        file.name: fingerprint(file, memory)
        for split in (entry.calibration, entry.evaluation)
        for file in mirror_files(entry, Path(data["path"]), split)
    }
    return {**reader, "files": files}
