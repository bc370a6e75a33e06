"""Directories that appear complete or not at all, each with a manifest of what made it.

A step writes into ``<out>.part-<host>-<pid>`` and renames it when everything is on disk, so a killed job
leaves nothing that could be taken for a result. The manifest has a checksum of every other file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar, overload

MANIFEST = "manifest.json"


class Manifest(TypedDict, total=False):
    """Keys of every manifest; a kind of output adds its own. ``failure``: why the output could not be made."""

    variant: str
    failure: str
    checksums: dict[str, str]
    environment: dict[str, str]


OfKind = TypeVar("OfKind", bound=Manifest)

LIBRARIES = ("torch", "transformers", "tokenizers", "compressed-tensors", "safetensors", "numpy", "pandas")
"""Distributions whose versions can change a number."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's numbers for a disk, or a share of it, that is full."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yield a scratch directory that becomes ``out`` when the block ends without an exception.

    Parts that dead processes of this host left behind are removed; an ``out`` that is already there is
    replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for stale in out.parent.glob(f"{out.name}.part-{host}-*"):
        if not Path(f"/proc/{stale.name.rsplit('-', 1)[1]}").exists():
            shutil.rmtree(stale, ignore_errors=True)
    scratch = out.with_name(f"{out.name}.part-{host}-{os.getpid()}")
    scratch.mkdir()
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    try:
        for path in (*scratch.rglob("*"), scratch):
            sync(path)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
        # The name is in the directory above, which is not on disk before it is told to be.
        sync(out.parent)
    except OSError:
        # A full disk may say so only now.
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def resuming(out: Path, *lasting: type[Exception]) -> Iterator[Path]:
    """Yield the folder next to ``out`` where a job keeps what it has finished; it need not be there.

    It is gone afterwards, but for what is worth running again: a kill, an interrupt, a full disk, and ``lasting``.
    """
    folder = out.with_name(f"{out.name}.resume")
    try:
        yield folder
    except Exception as error:
        if not disk_is_full(error) and not isinstance(error, lasting):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yield a name next to ``file`` that becomes ``file``, on disk, when the block ends without an exception."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f"{file.name}.part-{os.getpid()}")
    try:
        yield scratch
        sync(scratch)
        scratch.rename(file)
        sync(file.parent)
    finally:
        scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's or directory's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(directory: Path, **fields: Any) -> None:
    """Write ``manifest.json`` into ``directory``, after all other files: ``fields``, ``checksums`` of those files, and
    the environment that made it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    checksums = {str(path.relative_to(directory)): checksum(path) for path in files}
    content = {**fields, "checksums": checksums, "environment": environment()}
    (directory / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@overload
def read_manifest(directory: Path, /) -> dict[str, Any]: ...


@overload
def read_manifest(directory: Path, of: type[OfKind], /) -> OfKind: ...


def read_manifest(directory: Path, _of: type[Manifest] | None = None, /) -> Any:
    """Read the manifest of a finished output; the second argument is its type."""
    return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))


@contextlib.contextmanager
def failure_recorded(out: Path, **fields: Any) -> Iterator[None]:
    """Turn an exception of the block into an output whose manifest says ``failure``: one line, the reason.

    One broken variant must not stop the other thirty. Interrupts, kills and a full disk are no failures of the variant
    and pass through; the traceback goes to the job's log. ``hemorrhage invalidate`` lets it run again.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            log.critical("the disk is full; make room and run again: what is finished stays")
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.exception("recorded as failed: %s", reason)
        with writing(out) as folder:
            write_manifest(folder, failure=reason, **fields)


def disk_is_full(error: BaseException | None) -> bool:
    """Tell whether an exception, or one that it was made of, says that no room was left on a disk."""
    while error is not None:
        # What is written by libraries in other languages has the system's number in its text only.
        if getattr(error, "errno", None) in FULL or any(f"os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def failure(directory: Path) -> str | None:
    """Return why an output could not be made, or None where it was made."""
    return read_manifest(directory, Manifest).get("failure")


@functools.cache
def environment() -> Mapping[str, str]:
    """Describe what besides code and settings could move a number: Python, libraries, processor, threads.

    ``id`` is a digest of the rest; every row of the results has it.
    """
    versions = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()} {_processor()}",
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "device": _device(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    return {"id": hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:8], **versions}


def _device() -> str:
    # A step that computes has imported torch by now; one that has not, computed on the processor.
    torch = sys.modules.get("torch")
    if os.environ.get("HEMORRHAGE_DEVICE", "cuda") == "cuda" and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def checksum(file: Path) -> str:
    """Return 128 bits of a file's bytes by which damage shows (XXH3, ten times as fast as SHA-256)."""
    import xxhash

    state = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(2**22):
            state.update(piece)
    return state.hexdigest()


def verify(directory: Path) -> None:
    """Compare an output's files with the checksums in its manifest, once in a process.

    A folder without a manifest, which no step made, passes. Raises ValueError, which names the first file that is
    damaged or missing and says how to make it again.
    """
    manifest = directory / MANIFEST
    if manifest.is_file():
        _verify(directory.resolve(), manifest.stat().st_mtime_ns)


@functools.cache
def _verify(directory: Path, _written: int) -> None:
    manifest = read_manifest(directory, Manifest)
    for name, expected in manifest.get("checksums", {}).items():
        file = directory / name
        if not file.is_file() or checksum(file) != expected:
            problem = "is missing" if not file.is_file() else "is damaged: its checksum is not the manifest's"
            again = f"hemorrhage invalidate {manifest.get('variant', directory.parent.name)}"
            raise ValueError(f"{file} {problem}; `{again}` and the next run makes it again")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
