"""Models that could not be made, because their training diverged: what would be made from one says so instead.

One such model is no end of a study of several. Its training leaves an output with the reason, and every job that is
given it, or what was made from it, leaves the same and does not run. The manifest has ``failure``, the reason, and
``lacks_model``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

LACKS = "lacks_model"

MANIFEST = "manifest.json"

SAY_SO = ("hemorrhage.analyze", "hemorrhage.bracket")
"""Steps that are run: the analysis leaves such a model out, and a study of one model ends there."""


def record(out: Path, reason: str) -> None:
    """Write into ``out`` that there is no model to make it from, and why."""
    from hemorrhage.runtime.artifact import write_manifest, writing

    with writing(out) as folder:
        write_manifest(folder, failure=reason, **{LACKS: True})


def reason(folder: Path) -> str | None:
    """Return why the model of an output could not be made; None where it was, or nothing is there."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Not every argument of a step is a folder.
        return None
    return str(manifest["failure"]) if isinstance(manifest, dict) and LACKS in manifest else None


def inherit(module: str, arguments: Sequence[str]) -> bool:
    """Write the same into the output of a step, its first argument, where one of its inputs lacks its model.

    Return whether that was so, and the step is not to be run.
    """
    if module.startswith(SAY_SO):
        return False
    given = [word for word in arguments[1:] if not word.startswith(("-", "{"))]
    why = next(filter(None, (reason(Path(word)) for word in given)), None)
    if why is None:
        return False
    record(Path(arguments[0]), why)
    return True
