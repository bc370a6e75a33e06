"""A variant's checkpoint with all weights in full, as other programs want it."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from hemorrhage.models.weights import FILE, Weights
from hemorrhage.runtime.artifact import MANIFEST, read_manifest, write_manifest


def whole(folder: Path, base: Path) -> Path:
    """A copy beside ``folder``, which shares weights with ``base``, that needs no base; without a manifest."""
    out = folder.with_name(f"{folder.name}-whole")
    if not out.is_dir():
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns(MANIFEST, FILE, "model.safetensors"))
        save_file(dict(Weights(folder, base).items()), out / "model.safetensors", {"format": "pt"})
    return out


def resealed(folder: Path) -> Path:
    """``folder``, whose files a test has altered, with a manifest that has their checksums."""
    facts = read_manifest(folder)
    write_manifest(folder, **{key: value for key, value in facts.items() if key not in ("checksums", "environment")})
    return folder
