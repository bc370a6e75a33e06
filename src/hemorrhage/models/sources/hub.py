"""A model of the Hugging Face hub at a pinned commit, downloaded once and from then on a local folder."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hemorrhage.models.sources import path
from hemorrhage.runtime.network import fetched

NOTE = "The base is a model of the Hugging Face hub."

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(spec: dict[str, Any], out: Path) -> str:
    """Download ``spec["id"]`` at the commit ``spec["revision"]`` into ``out``; returns the note on it.

    Raises ValueError where the revision is no commit hash (a branch or tag could move under the address)
    and where what came is no plain safetensors checkpoint; ConnectionError where the network stays lost.
    """
    if not COMMIT.fullmatch(spec["revision"]):
        raise ValueError(f"model.revision: {spec['revision']!r} is no commit; 40 hexadecimal digits are needed")
    # The steps forbid network access; this one is asked for. The library reads the variable when imported.
    os.environ["HF_HUB_OFFLINE"] = "0"
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.download-") as scratch:
        folder = Path(fetched(spec["id"], lambda: download(spec["id"], spec["revision"], Path(scratch))))
        problem = path.refusal(folder)
        if problem:
            raise ValueError(f"model.id: {problem.replace(str(folder), spec['id'])}")
        path.adopt(folder, out)
    return NOTE


def download(repository: str, revision: str, folder: Path) -> str:
    """Fetch the checkpoint files of a repository (never its code or pickles) into ``folder``."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repository,
        revision=revision,
        local_dir=folder,
        allow_patterns=list(path.WANTED),
        ignore_patterns=["*/*"],
    )
