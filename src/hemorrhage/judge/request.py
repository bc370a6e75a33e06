"""What a judgement runs, as the content of a params.yaml: the study that answers it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hemorrhage.compress.methods.published.external import Settings, file_name
from hemorrhage.models.sources.published import refusal
from hemorrhage.runtime.address import JsonValue
from hemorrhage.runtime.command import CommandError

HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})(:(?P<file>[\w./-]+))?")
"""A repository of the hub at a commit, or a file of it."""

NAME = re.compile(r"[^a-z0-9_]+")

WHEELS = ("smollm2-135m-instruct",)

SWEEP = "file"

BUDGET = {"kl": 0.1, "perplexity": 1.1}
"""Limits of a judgement that names none: nats per token, and times the base's."""

CORPORA, WINDOWS = ("prose", "code"), 64

TASKS = ("agreement", "arithmetic", "recall", "cloze")

Content = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Request:
    """The base, the files that are judged, and how: ``windows`` of ``window`` tokens of each corpus.

    The corpora are ``texts``, files of the user of which ``score`` says what counts, else the bench's own. Without
    ``windows`` it is all of a file, and ``WINDOWS`` of the bench's corpora.
    ``engines``: where the files are measured once more; a server has the FILE of its ``variant``.
    """

    base: str
    files: Sequence[str]
    budget: Mapping[str, float] = field(default_factory=lambda: BUDGET)
    texts: Sequence[str] = ()
    score: str = "all"
    windows: int | None = None
    window: int = 64
    engines: Sequence[str | Content] = ()
    seed: int = 0
    confidence: float = 0.95

    def content(self) -> Content:
        """Return the study as the content of a params.yaml."""
        return {
            "cache_version": 1,
            "model": model(self.base),
            "data": {"source": "embedded", "items": 48, "seed": self.seed},
            "calibrate": {"corpus": "prose", "samples": 1, "length": 8, "seed": self.seed, "max_hessian_gb": 0},
            "compress": sweeps(self.files),
            "evaluate": {
                "dtype": "float32",
                "corpora": corpora(self.texts, self.score) or list(CORPORA),
                "window": self.window,
                "windows": self.windows or ("all" if self.texts else WINDOWS),
                "tasks": list(TASKS),
                "engines": [each if isinstance(each, str) else served(each, self.files) for each in self.engines],
                "harness": {"tasks": [], "items": 1, "batch": 1},
                "code_tasks": {
                    "tasks": [], "items": 1, "new_tokens": 1, "batch": 1, "seconds": 1, "memory_mb": 64,
                },
                "diagnostics": {"windows": 0, "window": min(64, self.window), "ablate": []},
            },
            "decode": {
                "variants": [],
                "sibling_model": None,
                "strategies": {"greedy": {"strategy": "greedy"}},
                "closed_ended": [{"task": "arithmetic", "items": 1, "new_tokens": 1}],
                "open_ended": [],
                "batch": 1,
                "seed": self.seed,
            },
            "mitigate": {
                "variants": [],
                "corpus": "prose",
                "tokens": 8,
                "buckets": 2,
                "steps": 1,
                "p": 0.95,
                "open_ended": {"items": 0, "prefix": 1, "new_tokens": 1},
                "seed": self.seed,
            },
            "analyze": {
                "resamples": 1000,
                "confidence": self.confidence,
                "seed": self.seed,
                "budget": dict(self.budget),
            },
        }  # fmt: skip


def served(server: Content, files: Sequence[str]) -> Content:
    """Return a server as evaluate.engines takes it. Raises CommandError where it has none of the files."""
    named = dict(zip(files, variants(files), strict=True))
    known = {"base": "base", **{_short(name): variant for name, variant in named.items()}, **named}
    given = server.get("variant", files[0] if len(files) == 1 else None)
    if given not in known:
        what = "does not say which FILE it has" if given is None else f"has {given!r}, which is no FILE that is read"
        raise CommandError(f"--engine: the server {what}: variant: base or one of {', '.join(files)}")
    return {**server, "variant": known[str(given)]}


def corpora(texts: Sequence[str], score: str) -> list[Content]:
    """Return files of texts as corpora of params.yaml. Raises CommandError for one that is missing."""
    entries: dict[str, Content] = {}
    for index, text in enumerate(texts, 1):
        path = Path(text).expanduser()
        if not path.is_file():
            raise CommandError(f"--texts: {text} is {'no file' if path.exists() else 'missing'}")
        name = NAME.sub("_", path.stem.lower()).strip("_") or "texts"
        name = f"{name}_{index}" if name in (*entries, *CORPORA) else name
        entries[name] = {"name": name, "file": str(path.resolve()), "score": score}
    return list(entries.values())


def model(base: str) -> Content:
    """Return a base as ``model`` of params.yaml. Raises CommandError where it is none."""
    hub = HUB.fullmatch(base)
    if hub and not Path(base).exists():
        if hub["file"]:
            raise CommandError(f"BASE: {base} names a file; a base is a repository or a folder")
        return {"source": "hub", "id": hub["id"], "revision": hub["revision"]}
    if base in WHEELS and not Path(base).exists():
        return {"source": "wheel", "name": base}
    path = Path(base).expanduser()
    if path.is_dir():
        return {"source": "path", "path": str(path.resolve())}
    _refuse("BASE", base, path)
    raise CommandError(f"BASE: {base} is a file; a base is a folder of safetensors or org/name@commit")


def published(name: str) -> str | Content:
    """Return a file as ``files`` of the method external takes it. Raises CommandError where it is none."""
    hub = HUB.fullmatch(name)
    if hub and not Path(name).exists():
        return {key: value for key, value in hub.groupdict().items() if value}
    path = Path(name).expanduser()
    _refuse("FILE", name, path)
    return str(path.resolve())


def unreadable(files: Sequence[str]) -> dict[str, str]:
    """Return why files can't be read, of those that can't. Raises CommandError for one that is missing."""
    chosen = {name: published(name) for name in files}
    problems = {name: refusal(Path(path)) for name, path in chosen.items() if isinstance(path, str)}
    return {name: problem for name, problem in problems.items() if problem}


def _refuse(which: str, name: str, path: Path) -> None:
    if path.exists():
        return
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(@.*)?", name):
        raise CommandError(
            f"{which}: {name} is neither on this machine nor org/name@commit with all 40 digits of the commit"
        )
    raise CommandError(f"{which}: {name} is missing")


def sweeps(files: Sequence[str]) -> Content:
    """Return the sweeps: one of all files, or, where two files have one name, one for each."""
    chosen = [published(name) for name in files]
    lower = [_short(name).lower() for name in files]
    if len(set(lower)) == len(lower):
        return {SWEEP: {"method": "external", "files": chosen}}
    return {f"{SWEEP}_{index}": {"method": "external", "files": [each]} for index, each in enumerate(chosen, 1)}


def variants(files: Sequence[str]) -> list[str]:
    """Return what the study calls the files."""
    in_name = Settings.in_names["files"]
    return [f"{sweep}-{in_name(file)}" for sweep, entry in sweeps(files).items() for file in _files(entry)]


def _short(name: str) -> str:
    """Return what a file is called in the answer."""
    file = published(name)
    return file_name(file if isinstance(file, str) else {key: str(value) for key, value in file.items()})


def _files(entry: JsonValue) -> list[JsonValue]:
    assert isinstance(entry, Mapping)
    listed = entry["files"]
    assert isinstance(listed, list)
    return listed
