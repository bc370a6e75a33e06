"""Making the outputs of a plan without Snakemake: the same steps with the same arguments, several at once.

An output that exists is not made again, so that an interrupted judgement goes on where it was.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML

from hemorrhage.analyze.study import Study, read
from hemorrhage.judge.cache import touch
from hemorrhage.judge.request import Content
from hemorrhage.runtime.address import SOURCE
from hemorrhage.runtime.command import CommandError
from hemorrhage.runtime.service import client, server
from hemorrhage.study.costs.jobs import Workload
from hemorrhage.study.costs.model import Costs
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.kinds import KINDS, Key
from hemorrhage.study.params import ConfigError
from hemorrhage.study.plan import Plan

WANTED = ("base", "texts", "tasks", "references", "checkpoints", "evaluations", "served")
"""Kinds of output that a judgement rests on."""

LOGS, PARAMS = Path("logs"), Path("params.yaml")

IN_WORDS = {
    r"^params\.yaml: ": "",
    r"^model\.(path|id)": "BASE",
    r"^compress\.\w+\.files": "FILE",
    r"^evaluate\.corpora\S*": "--texts",
    r"^evaluate\.engines\.\d+\.": "--engine: ",
    r"^evaluate\.engines(\.\d+)?": "--engine",
    r"\bevaluate\.(windows?)\b": r"--\1",
}
"""Pattern of a key of params.yaml -> the argument that it comes from."""

Say = Callable[[str], None]


@dataclass
class Run:
    """The jobs of a plan that are left, and those that run. ``cores``: jobs at once."""

    plan: Plan
    cores: int
    say: Say
    left: list[Key] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.requests = Requests(Workload(self.plan), Costs.read())
        self.left = [
            (kind, name)
            for kind in WANTED
            for name in self.plan.names(kind)
            if not Path(self.plan.manifest(kind, name)).is_file()
        ]
        self.total = len(self.left)
        self.predicted = sum(self.requests.seconds(*key) for key in self.left) if self.requests.workload.shape else 0.0

    def ready(self) -> list[Key]:
        """Return the jobs whose inputs exist, in the order of the kinds."""
        return [
            (kind, name)
            for kind, name in self.left
            if all(Path(self.plan.manifest(*needed)).is_file() for needed in KINDS[kind].needs(self.plan.design, name))
        ]

    def seconds_left(self, passed: float) -> float:
        """Return the seconds that what is left takes, by the predicted costs and the speed of the ``passed`` seconds.

        0 while the model's size is not known.
        """
        if self.requests.workload.shape is None:
            return 0.0
        left = sum(self.requests.seconds(*key) for key in self.left)
        return passed * left / (self.predicted - left)

    def make(self) -> None:
        """Make everything. Raises CommandError with the line that a step ended with."""
        running: dict[Future[None], Key] = {}
        with ThreadPoolExecutor(self.cores) as pool:
            try:
                # Each job that is left waits for one that runs: the order of the kinds has no circle.
                while self.left:
                    for key in self.ready():
                        if key not in running.values() and len(running) < self.cores:
                            running[pool.submit(_step, *self._job(key))] = key
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        self._finish(running.pop(done), done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _kill_children()
                raise

    def _job(self, key: Key) -> tuple[list[str], Path]:
        kind, name = key
        log = LOGS / kind / f"{name}-{self.plan.address(kind, name)}.log"
        usage = LOGS / "benchmarks" / kind / f"{name}-{self.plan.address(kind, name)}.tsv"
        start = ["--direct"] if KINDS[kind].on_gpu is None else []
        return [*start, str(usage), *shlex.split(self.plan.command(kind, name))], log

    def _finish(self, key: Key, done: Future[None]) -> None:
        done.result()
        self.left.remove(key)
        made, passed = self.total - len(self.left), time.monotonic() - self.began
        seconds = self.seconds_left(passed)
        more = f", about {seconds:.0f} s left" if self.left and seconds else ""
        self.say(f"[{made}/{self.total}] {key[0]} {key[1]}: {passed:.0f} s{more}")


def _kill_children() -> None:
    for process in list(_PROCESSES):
        process.kill()


_PROCESSES: set[subprocess.Popen[bytes]] = set()
"""Clients of the jobs that run: whoever kills one ends its job."""


def _step(words: Sequence[str], log: Path) -> None:
    """Run a step. Raises CommandError with the last line of its log where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent), **dict.fromkeys(server.THREADS, "1")}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-IS", client.__file__, *words], stdout=stream, stderr=stream, env=environment
        )
        _PROCESSES.add(process)
        try:
            status = process.wait()
        finally:
            _PROCESSES.discard(process)
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        line = lines[-1].removeprefix("error: ") if lines else f"{words[-1]} ended with {status}"
        raise CommandError(in_words_of_the_command(line))


@contextmanager
def service() -> Iterator[None]:
    """Run the server that forks a child for each job, so that the libraries are imported once."""
    process = server.start(SOURCE.parent, LOGS / "service.log")
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


@dataclass(frozen=True)
class Judged:
    """The study that answers a judgement, and the folders of the outputs that it rests on."""

    study: Study
    used: Sequence[Path]


def run(content: Content, out: Path, cores: int, say: Say) -> Judged:
    """Make the study of a params.yaml's ``content`` in the working directory, and its rows and page in ``out``.

    Raises CommandError where a step ends with an error, and for what params.yaml is refused for.
    """
    YAML().dump(content, PARAMS)
    try:
        plan = Plan.read(PARAMS)
    except ConfigError as error:
        raise CommandError(in_words_of_the_command(str(error))) from None
    jobs = Run(plan, cores, say)
    if jobs.left:
        with service():
            jobs.make()
    manifests = [Path(manifest) for kind in WANTED for manifest in plan.manifests(kind)]
    touch(manifests)
    analyze(plan, out)
    return Judged(read(out), [manifest.parent for manifest in manifests])


def in_words_of_the_command(line: str) -> str:
    """Return a line about params.yaml as one about the command's arguments."""
    for pattern, name in IN_WORDS.items():
        line = re.sub(pattern, name, line)
    return line


def analyze(plan: Plan, out: Path) -> None:
    """Write the rows and the page of a plan's evaluations into ``out``."""
    for name, command in (("rows", plan.rows_command(out, WANTED)), ("page", plan.page_command(out))):
        _step(["--direct", str(LOGS / f"benchmarks/{name}.tsv"), *shlex.split(command)], LOGS / f"{name}.log")
