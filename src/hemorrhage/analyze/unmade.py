"""A model of a study of several whose training diverged: its folder of reports says why, and has no numbers."""

from __future__ import annotations

import json
from pathlib import Path

from hemorrhage.runtime.artifact import environment, whole

PROVENANCE, NUMBERS = "provenance.json", ("hemorrhage.parquet", "study.json")


def write(reports: Path, reason: str, address: str) -> None:
    """Write into a model's folder of reports why it is not there; numbers that were there are removed."""
    for name in (PROVENANCE, *NUMBERS):
        (reports / name).unlink(missing_ok=True)
    with whole(reports / PROVENANCE) as unfinished:
        content = {"address": address, "failure": reason, "analyzed_in": environment()["id"]}
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def reason(reports: Path) -> str | None:
    """Return why a folder of reports has no numbers; None where it has some."""
    said = json.loads((reports / PROVENANCE).read_text(encoding="utf-8")).get("failure")
    return None if said is None else str(said)
