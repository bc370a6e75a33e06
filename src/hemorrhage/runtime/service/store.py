"""Outputs that several folders share: an experiment links what an earlier one computed.

A store is a folder like ``data/``: ``<kind>/<name>/<address>/``, hard links to what some run made. An address names
everything that an output depends on, so what lies there is the same for everyone. ``HEMORRHAGE_STORE`` names a store;
without it DVC's temporary experiments share one in the project that they are experiments of, and no other run has one.

Outputs of a store are never written again: whoever makes one writes it elsewhere and renames it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

DATA = Path("data")
MANIFEST = "manifest.json"

EXPERIMENTS = "/.dvc/tmp/exps/"
"""Where DVC puts the folders of ``dvc exp run --temp`` and ``--queue``."""


def folder() -> Path | None:
    """Return the store of the run in the working directory, or None where it shares with nobody."""
    named = os.environ.get("HEMORRHAGE_STORE")
    if named:
        return Path(named)
    root = project()
    return root and root / ".snakemake" / "shared"


def project() -> Path | None:
    """Return the project that the working directory is a temporary experiment of, or None."""
    root, is_experiment, _ = str(Path.cwd()).partition(EXPERIMENTS)
    return Path(root) if is_experiment else None


@contextlib.contextmanager
def shared(out: Path) -> Iterator[bool]:
    """Yield whether ``out`` was linked from the store; else the block makes it, and it is put there.

    While one run makes an output, another that wants the same waits. A failure is never put there, and nothing is
    where the block raises or ends the process otherwise than by SystemExit with 0. A store of another user, which this
    one can't write, is only read.
    """
    store = folder()
    if store is None or not out.is_relative_to(DATA):
        yield False
        return
    kept = store / out.relative_to(DATA)
    with _locked(kept.with_name(f"{kept.name}.lock")) as may_write:
        if _is_whole(kept) and not (out / MANIFEST).is_file():
            # Snakemake makes the folder of a manifest before the job begins.
            shutil.rmtree(out, ignore_errors=True)
            link(kept, out)
            yield True
            return
        try:
            yield False
        except SystemExit as end:
            if not end.code and may_write:
                publish(out, kept)
            raise
        if may_write:
            publish(out, kept)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold the lock of an output, where this user may; yields whether the output may be put there."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(PermissionError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # A lock that another user made can be held without being written.
            mode = "r" if file.exists() and not os.access(file, os.W_OK) else "w"
            fcntl.flock(held.enter_context(file.open(mode, encoding="utf-8")), fcntl.LOCK_EX)
        yield os.access(file.parent, os.W_OK | os.X_OK)


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file() and os.access(folder / MANIFEST, os.R_OK)
    except PermissionError:
        return False


def publish(out: Path, kept: Path) -> None:
    """Put an output into the store, unless the store has it or it failed."""
    manifest = out / MANIFEST
    if kept.exists() or not manifest.is_file() or "failure" in json.loads(manifest.read_text(encoding="utf-8")):
        return
    link(out, kept)


def link(source: Path, target: Path) -> None:
    """Make ``target`` a folder of hard links to the files of ``source``; copies across file systems."""
    scratch = target.with_name(f"{target.name}.part-{os.uname().nodename}-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, scratch, copy_function=_link)
    with contextlib.suppress(FileExistsError):
        scratch.rename(target)
        return
    shutil.rmtree(scratch)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove(out: Path) -> None:
    """Take an output out of the store, where this run has one."""
    store = folder()
    if store is not None and out.is_relative_to(DATA):
        shutil.rmtree(store / out.relative_to(DATA), ignore_errors=True)
