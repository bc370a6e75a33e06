"""Take over the outputs of an earlier revision whose code differs from this one's, but not its results.

    hemorrhage adopt REV [--samples K] [--keep]

An edit of shared code, such as another name for a local variable, gives every output that reaches it another address,
and the next run would make all of them again. Here a few of each sort are made again and compared with what REV's code
made, byte for byte but for clocks and peaks of memory (``MEASURED``). Where all are equal, the others are taken to
their new addresses as they are; at the first difference nothing is taken over, and nothing on disk has changed.

A sort is a kind of output and a name; but among checkpoints it is a sweep, and among what is measured on them a way to
store one. ``--samples`` are made of each sort. Which outputs REV's code would
name, that code itself says of the params.yaml that is here now. The report is made again by the next run.

Ends with 0 when outputs were taken over or none had to be, with 1 when a sample differs or can't be made, and with 64
when there is no answer: no such revision, one that is too old, a params.yaml that it can't read, another run at work.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import filecmp
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from hemorrhage.runtime.address import SOURCE
from hemorrhage.runtime.artifact import MANIFEST, failure, read_manifest, sync, whole
from hemorrhage.runtime.command import NO, NOT_MEASURED, YES, CommandError, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.runtime.service import store
from hemorrhage.study.kinds import BASE, KINDS, SIBLING, STAGES
from hemorrhage.study.plan import DATA, Plan

MEASURED = {
    "cost.json": ("prefill", "decode", "peak_bytes"),
    "generations.parquet": ("seconds",),
    "programs.parquet": ("seconds", "cpu_seconds"),
}
"""File -> its fields or columns that a clock or the machine's memory gives, which no two runs have equal."""

OF_THE_MACHINE = ("environment", "checksums")
"""Fields of a manifest that are not compared: what made it, and digests of files that are compared themselves."""

RUN = Path(".snakemake/run.lock")
LOCK = Path(".snakemake/adopt.lock")
"""Held by a run, and by a run and by an adoption: there is one at a time in a folder."""

JOURNAL = Path(".snakemake/adopt.json")
"""Outputs that an adoption may have made so far, so that a killed one can be taken back."""

ADOPTING = "HEMORRHAGE_ADOPTING"
"""Set in the environment of the runs that an adoption starts."""

USAGE_FILES = Path("logs/benchmarks")


class DifferentError(Exception):
    """Raised where a sample is not what it was, or can't be made; the message is one line."""


class UnanswerableError(Exception):
    """Raised where it is not decidable what to take over; the message is one line."""


class Journal(TypedDict, total=False):
    """The journal's content: outputs that did not exist before, or those that were adopted."""

    absent: list[str]
    adopted: list[tuple[str, str, str, str]]
    keep: bool


@dataclass(frozen=True)
class Moved:
    """An output that lies at another address now."""

    kind: str
    name: str
    old: str
    new: str

    @property
    def before(self) -> Path:
        """The folder at the address that the revision's code gives it."""
        return DATA / self.kind / self.name / self.old

    @property
    def after(self) -> Path:
        """The folder at the address that the code here gives it."""
        return DATA / self.kind / self.name / self.new


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "adopt",
        "Take over the outputs of a revision whose code differs from this one's, but not its results: a few of each\n"
        "sort are made anew and compared byte for byte; at the first difference nothing is taken over.",
        ["hemorrhage adopt HEAD~1", "hemorrhage adopt HEAD~1 --samples 3"],
        {
            NO: "refused: a sample differs or can't be made; nothing has changed",
            NOT_MEASURED: "data/ holds no output of the revision",
        },
    )
    made.add_argument("revision", metavar="REV", help="a commit, branch or tag")
    made.add_argument("--samples", type=_positive, default=1, metavar="K", help="made anew of each sort; default: 1")
    made.add_argument("--keep", action="store_true", help="leave the outputs at their old addresses, too")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Take outputs over and say how many."""
    given = parser().parse_args(argv)
    try:
        _of_this_folder()
        with _alone():
            print(adopt(given.revision, given.samples, given.keep))
    except DifferentError as error:
        raise CommandError(f"refused, nothing was taken over: {error}", NO) from None
    except UnanswerableError as error:
        raise CommandError(str(error)) from None
    return YES


def adopt(revision: str, samples: int = 1, keep: bool = False) -> str:
    """Take over what ``revision`` made of this params.yaml; returns a line that says how much that was.

    Raises DifferentError, with everything as it was, where one of the samples differs.
    """
    _take_back()
    plan = Plan.read()
    before, now = addresses_at(revision), plan.addresses()
    moved, failures = candidates(before, now)
    if not moved and any((DATA / key / now[key] / MANIFEST).is_file() for key in now if key in before):
        return f"adopted 0 outputs: those of {revision} in data/ have the addresses of this code{_failures(failures)}"
    if not moved:
        raise CommandError(f"nothing to adopt: data/ holds no output of {revision}{_failures(failures)}", NOT_MEASURED)
    _begin(plan)
    try:
        made = 0
        for stage in STAGES:
            made += _take_over(stage, [each for each in moved if KINDS[each.kind].stage == stage], samples)
        _commit(moved, keep)
    except BaseException:
        _take_back()
        raise
    _finish()
    return (
        f"adopted {len(moved)} outputs: {made} were made anew and are equal, {len(moved) - made} were taken over on"
        f" that evidence{_failures(failures)}; the next run makes the report again"
    )


def candidates(before: dict[str, str], now: dict[str, str]) -> tuple[list[Moved], int]:
    """List the outputs that exist at their old address alone, in the order they are made, and count those that failed.

    What failed is made again by the next run: whether it fails still is quickly seen.
    """
    both = (Moved(*key.split("/", 1), before[key], now[key]) for key in now if key in before)  # type: ignore[call-arg]
    existing = [
        each
        for each in both
        if each.old != each.new and (each.before / MANIFEST).is_file() and not (each.after / MANIFEST).is_file()
    ]
    sound = [each for each in existing if failure(each.before) is None]
    return sound, len(existing) - len(sound)


def addresses_at(revision: str) -> dict[str, str]:
    """Ask a revision's own code where it puts the outputs of this params.yaml. Raises UnanswerableError."""
    if _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").returncode:
        raise UnanswerableError(f"{revision}: no such revision in this repository")
    archived = _git("archive", "--format=tar", revision, "src/hemorrhage")
    too_old = f"{revision}: too old, its plan does not say where outputs lie"
    if archived.returncode:
        raise UnanswerableError(too_old)
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
            archive.extractall(scratch, filter="data")
        # The study had its commands in the module of the plan before.
        asks = (
            "hemorrhage.study"
            if Path(scratch, "src/hemorrhage/study/__main__.py").is_file()
            else "hemorrhage.study.plan"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-m", asks, "addresses"],
            env={**os.environ, "PYTHONPATH": str(Path(scratch, "src")), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        addresses: dict[str, str] = json.loads(done.stdout)
        return addresses
    if "No module named 'hemorrhage" in done.stderr or "invalid choice" in done.stderr:
        raise UnanswerableError(too_old)
    raise UnanswerableError(f"{revision} can't plan this params.yaml: {done.stderr.strip().splitlines()[-1]}")


# Samples.


def sort_of(moved: Moved) -> tuple[object, ...]:
    """Return the sort of an output: those of one sort are made by the same code in the same way."""
    made = read_manifest(moved.before)
    if moved.kind == "checkpoints":
        # Shares differ within a sweep; a flag, a word or a whole number (a width in bits) may be another path through
        # the code.
        settings = ((key, "float" if isinstance(value, float) else value) for key, value in made["settings"].items())
        return made["sweep"], made["method"], json.dumps(sorted(settings))
    model = KINDS[moved.kind].model(moved.name)
    if KINDS[moved.kind].of_models and model not in (BASE, SIBLING):
        # Of a variant in an engine the engine counts, too.
        return (moved.name.removesuffix(model), *_stored(model))
    return (moved.name,)


def _stored(variant: str) -> tuple[object, ...]:
    """Describe how a variant's checkpoint is stored, and computes once it is loaded, at whatever address it lies."""
    folders = [file.parent for file in sorted((DATA / "checkpoints" / variant).glob(f"*/{MANIFEST}"))]
    for folder in folders:
        if (folder / "config.json").is_file():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            bench, scheme = config.get("hemorrhage") or {}, config.get("quantization_config") or {}
            groups = scheme.get("config_groups", {}).values()
            return (
                config["model_type"],
                *sorted(bench),
                *bench.get("forms", ()),
                bench.get("form"),
                scheme.get("quant_method"),
                scheme.get("format"),
                bool(scheme.get("kv_cache_scheme")),
                any(group.get("input_activations") for group in groups),
                read_manifest(folder).get("mask_bits") is not None,
            )
    return (variant,)


def _take_over(stage: str, moved: list[Moved], samples: int) -> int:
    """Link the outputs of one stage to their new addresses, and prove it on samples; returns how many were made."""
    sorts: dict[tuple[object, ...], list[Moved]] = {}
    for each in moved:
        sorts.setdefault((each.kind, *sort_of(each)), []).append(each)
    chosen = [each for sort in sorts.values() for each in _spread(sort, samples)]
    for each in moved:
        if each not in chosen:
            store.link(each.before, each.after)
    if not chosen:
        return 0
    _make(chosen)
    for each in chosen:
        first = difference(each.before, each.after)
        if first:
            raise DifferentError(f"{each.kind}/{each.name} is not what it was: {first}")
        # The earlier one stays, with its clock's numbers: the report says what it said.
        shutil.rmtree(each.after)
        store.link(each.before, each.after)
    print(f"{stage}: {len(chosen)} of {len(moved)} made anew, all equal", file=sys.stderr)
    return len(chosen)


def _spread(sort: list[Moved], samples: int) -> list[Moved]:
    """Choose as many of a sort, evenly from its beginning to its end, so that a single one is of medium severity."""
    if samples >= len(sort):
        return sort
    return [sort[(2 * index + 1) * len(sort) // (2 * samples)] for index in range(samples)]


def _make(chosen: list[Moved]) -> None:
    """Make outputs at their new addresses. Raises DifferentError where one can't be made."""
    manifests = [str(each.after / MANIFEST) for each in chosen]
    # What is made here of inputs that are not proven yet is for nobody else.
    environment = {key: value for key, value in os.environ.items() if key != "HEMORRHAGE_STORE"} | {ADOPTING: "1"}
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--", *manifests]
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    for each, manifest in zip(chosen, manifests, strict=True):
        if not Path(manifest).is_file():
            reason = f"snakemake ended with {done.returncode}; logs/{each.kind}/{each.name}-{each.new}.log says why"
            raise DifferentError(f"{each.kind}/{each.name} can't be made: {reason}")


def difference(before: Path, after: Path) -> str | None:
    """Describe the first difference between two outputs; None where there is none that counts."""
    old, new = read_manifest(before), read_manifest(after)
    if "failure" in new:
        return f"it fails: {new['failure']}"
    files = set(old["checksums"])
    if other := sorted(files ^ set(new["checksums"])):
        return f"{other[0]} is {'gone' if other[0] in files else 'new'}"
    for name in sorted(files):
        if not _equal(before / name, after / name):
            return f"{name} differs"
    fields = sorted((old.keys() | new.keys()) - set(OF_THE_MACHINE))
    for key in fields:
        if old.get(key) != new.get(key):
            return f"{key} in {MANIFEST} differs"
    return None


def _equal(before: Path, after: Path) -> bool:
    """Tell whether two files have the same bytes, but for what is measured."""
    ignored = MEASURED.get(before.name)
    if ignored is None:
        return filecmp.cmp(before, after, shallow=False)
    if before.suffix == ".json":
        old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (before, after))
        return {**old, **dict.fromkeys(ignored)} == {**new, **dict.fromkeys(ignored)} and old.keys() == new.keys()
    return _table(before, ignored) == _table(after, ignored)


def _table(file: Path, ignored: Iterable[str]) -> bytes:
    """Return a table without some of its columns, as the bytes of a file: NaN equals NaN, and types count."""
    from pyarrow import BufferOutputStream, parquet

    table = parquet.read_table(file)
    sink = BufferOutputStream()
    parquet.write_table(table.drop_columns([name for name in ignored if name in table.column_names]), sink)
    return bytes(sink.getvalue().to_pybytes())


# The journal: what was not there before, and, once every sample is equal, what is to be removed.


def take_back() -> None:
    """Undo what a killed adoption left behind; nothing where one is at work, or none was killed."""
    # A job of a sample may run on another machine, where the lock is not seen.
    if JOURNAL.is_file() and ADOPTING not in os.environ:
        with contextlib.suppress(UnanswerableError), _alone():
            _take_back()


def _take_back() -> None:
    if not JOURNAL.is_file():
        return
    content: Journal = json.loads(JOURNAL.read_text(encoding="utf-8"))
    if "adopted" in content:
        # Killed while it removed what was taken over.
        _finish()
        return
    for folder in map(Path, content["absent"]):
        for left in (folder, *folder.parent.glob(f"{folder.name}.*")):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    JOURNAL.unlink()


def _begin(plan: Plan) -> None:
    """Write down which outputs of the plan are not there, before any of them is made."""
    folders = (DATA / key / address for key, address in plan.addresses().items())
    _journal({"absent": [str(folder) for folder in folders if not (folder / MANIFEST).is_file()]})


def _commit(moved: list[Moved], keep: bool) -> None:
    """From here on the outputs at their new addresses count."""
    _journal({"adopted": [(each.kind, each.name, each.old, each.new) for each in moved], "keep": keep})


def _finish() -> None:
    """Remove the outputs at their old addresses, and let what their jobs used be known at the new ones."""
    content: Journal = json.loads(JOURNAL.read_text(encoding="utf-8"))
    for each in (Moved(*words) for words in content["adopted"]):
        usage, new = (USAGE_FILES / each.kind / f"{each.name}-{address}.tsv" for address in (each.old, each.new))
        if usage.is_file():
            shutil.copy2(usage, new)
        if not content["keep"]:
            usage.unlink(missing_ok=True)
            shutil.rmtree(each.before, ignore_errors=True)
    JOURNAL.unlink()


def _journal(content: Journal) -> None:
    with whole(JOURNAL) as scratch:
        scratch.write_text(json.dumps(content), encoding="utf-8")
        sync(scratch)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of runs and adoptions. Raises UnanswerableError where another process has it."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that an adoption started goes on where the adoption was killed.
            with RUN.open("w", encoding="utf-8") as run:
                fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnanswerableError("a run is at work in this folder; wait for it to end, or stop it") from None
        yield


def _of_this_folder() -> None:
    """Raise UnanswerableError where this is not the code that runs in this folder."""
    if Path("src/hemorrhage").resolve() != SOURCE:
        raise UnanswerableError(f"{SOURCE} is not this folder's code; call it in its folder, or with PYTHONPATH=src")


def _failures(count: int) -> str:
    return f", {count} that had failed are made again" if count else ""


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], capture_output=True, check=False)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)
