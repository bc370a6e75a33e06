"""A model of the Hugging Face hub at a pinned commit, downloaded once and from then on a local folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hemorrhage.models.sources import path
from hemorrhage.models.sources.files import INDEX, NAMES, WEIGHTS, exists, weight_map
from hemorrhage.models.sources.origin import Origin, Spec
from hemorrhage.runtime.network import fetch_persistently
from hemorrhage.runtime.step import InputError

NOTE = "The base is a model of the Hugging Face hub."

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(spec: Spec, out: Path) -> Origin:
    """Download ``spec["id"]`` at the commit ``spec["revision"]`` into ``out``; return what it is.

    Raises InputError where the revision is no commit hash (a branch or tag could move under the address), where the hub
    does not have it, and where what came is no plain safetensors checkpoint; ConnectionError where the network stays
    lost.
    """
    if not COMMIT.fullmatch(spec["revision"]):
        raise InputError(f"model.revision: {spec['revision']!r} is not a commit hash of 40 hexadecimal digits")
    # The steps forbid network access; this one is asked for. The library reads the variable when imported.
    os.environ["HF_HUB_OFFLINE"] = "0"
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.download-") as scratch:
        folder = Path(scratch)
        try:
            # Settings and tokenizer first: what they rule out is not worth downloading weights for.
            folder = _download_files(spec, folder, [*NAMES, INDEX])
            path.check_settings(folder)
            index = folder / INDEX
            folder = _download_files(
                spec, folder, sorted(set(weight_map(index).values())) if exists(index) else [WEIGHTS]
            )
            notes = path.adopt(folder, out)
        except InputError as problem:
            line = str(problem).replace(str(folder), spec["id"]).replace(scratch, spec["id"])
            raise InputError(f"model.id: {line}") from None
    return Origin(f"{NOTE}{notes}")


def _download_files(spec: Spec, scratch: Path, names: Sequence[str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(fetch_persistently(spec["id"], lambda: download(spec["id"], spec["revision"], scratch, names)))
    except HfHubHTTPError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise InputError(f"{spec['id']} at {spec['revision'][:8]} can't be downloaded: {reason}") from error


def download(repository: str, revision: str, folder: Path, names: Sequence[str]) -> str:
    """Fetch files of a repository (never its code or pickles) into ``folder``."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repository,
        revision=revision,
        local_dir=folder,
        allow_patterns=list(names),
        ignore_patterns=["*/*"],
    )
