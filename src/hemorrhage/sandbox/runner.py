"""Running one Python program that nobody has read: generated code, and its tests beside it.

The wall is bubblewrap (``bwrap``, version 0.8 or newer) and seccomp filters from libseccomp; where either is missing or
doesn't hold, nothing is run (``missing`` says why). A program sees

- namespaces of its own for processes, network (a loopback device that reaches nothing), mounts, IPC and host name. When
  the first process of its namespace dies the kernel kills whatever is left in it, and ``run`` returns only after that;
- /usr, the interpreter, the dynamic linker's cache, NumPy and the source of this room, read only; /dev/null; and /tmp,
  its working directory, which is empty, lies in memory, holds FILE_BYTES and NAMES, and vanishes with it. No /proc, no
  /sys, no other device;
- no inherited file but the pipes to its tests, no environment, no terminal;
- a user that owns nothing, without a capability: for root one that is drawn for the process, for anybody else nobody in
  a user namespace;
- resource limits on threads, address space, processor time, files, their size and their number. It stays one process
  and one program: fork and exec are refused. What takes memory that isn't counted in its address space (System V
  segments, queues, memfd, extended attributes, file locks, notifications) the filter refuses, and with it sockets of
  every family (AF_VSOCK knows no namespace), tracing, mounting, namespaces, BPF, io_uring and keys. Calls that are
  newer than the filter do not exist.

The tests run in a second process behind the same walls, which never runs the program (hemorrhage.sandbox.judge): the
program's process answers their calls through a pipe with values of Python's own types, and the tests' process alone can
send the verdict. Whatever a program does to its own interpreter, what counts is which values it sends. What remains
possible: answers that were written for the very tests, where a prompt shows them; and a flaw of the kernel behind the
system calls that are left.

A program may take ``seconds`` of processor time, and WAITING times as much on the clock, which stands still while it
waits for a processor: a loaded machine does not fail a slow program, and one that sleeps ends.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from hemorrhage.sandbox import inside, judge, program, wall

UnavailableError = wall.UnavailableError

STATUSES = ("passed", "failed", "error", "timeout", "memory", "blocked")
"""``failed``: an assertion did not hold; ``error``: any other exception, or an end before that of the tests;
``memory``: MemoryError; ``blocked``: it wanted what the sandbox refuses, and did not catch the refusal."""

WAITING = 8
"""Time on the clock for each second of processor time, waiting for a processor not counted."""
TESTS_MB = 1024
"""Address space of the tests' process, MiB."""
DETAIL = 200
"""Characters of ``Result.detail``, at most."""
MESSAGE_BYTES = 4096
"""Read from a pipe at once, and of a verdict, at most."""
SHORTEST_WAIT = 0.01
"""Seconds between two looks at the processor time, at least."""
START_SECONDS = 60
"""For bubblewrap to set up its namespaces on a busy machine; the program's own clock starts after."""

PROBE = """
import ctypes, os, resource, socket, threading

def refused(act, *given):
    try:
        act(*given)
    except OSError:
        return
    raise AssertionError(act.__name__)

refused(os.fork)
refused(os.execv, "/usr/bin/true", ["true"])
refused(socket.socket)
refused(os.setuid, 0)
refused(os.chroot, "/tmp")
refused(os.setxattr, "/tmp", "user.a", b"a")
for folder in ("/", "/usr", "/dev", os.path.dirname(os.__file__)):
    refused(open, os.path.join(folder, "written"), "w")
for folder in ("/", "/usr", os.path.dirname(os.__file__), *("/packages/" + each for each in PACKAGES)):
    assert os.statvfs(folder).f_flag & os.ST_RDONLY, folder
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 32, b"nr_inodes=9999") == -1, "mount"
assert libc.syscall(435, 0, 0) == libc.syscall(463, 0, 0) == -1 and ctypes.get_errno() == 38, "later calls"
held = (ctypes.c_uint32 * 6)()
assert libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), held) == 0 and not any(held), "capabilities"
assert os.getuid() != 0 and os.getgid() == 65534 and set(os.getgroups()) <= {65534}
assert set(os.listdir("/")) <= {"dev", "etc", "lib", "lib64", "packages", "tmp", "usr", PREFIX.split("/")[1]}
assert not os.path.exists("/proc/self") and os.listdir("/tmp") == []
assert os.statvfs("/tmp").f_files == NAMES, "names"
"""
"""Tries the doors; PREFIX, NAMES and PACKAGES are put in front."""


@dataclass(frozen=True)
class Checks:
    """What decides about a program.

    ``source`` are the assertions. ``asked`` are the names that they use and the program has to define. ``given`` is
    what the problem itself defines for them.
    """

    source: str = ""
    asked: tuple[str, ...] = ()
    given: str = ""


NONE = Checks()
"""No tests: a program passes that comes to its end."""


@dataclass(frozen=True)
class Result:
    """End of a program: one of STATUSES, one line of detail, wall-clock seconds from start to verdict.

    ``cpu_seconds`` are the program's on all processors, as last read; those of its tests are not in it.
    """

    status: str
    detail: str
    seconds: float
    cpu_seconds: float


@functools.cache
def missing() -> str | None:
    """Say in one line why programs can't be run on this machine, or return None; checked once per process."""
    if not sys.platform.startswith("linux"):
        return f"programs need the namespaces of Linux, this is {sys.platform}"
    if shutil.which("bwrap") is None:
        return "programs need bwrap (Debian package bubblewrap, 0.8 or newer), which is not installed"
    if importlib.util.find_spec("pyseccomp") is None:
        return "programs need the package pyseccomp, which is not installed"
    try:
        given = f"PREFIX, NAMES, PACKAGES = {sys.base_prefix!r}, {wall.NAMES}, {[*wall.packages()]}"
        probe = _run(f"{given}\n{PROBE}", NONE, seconds=10, memory_mb=512)
    except (UnavailableError, OSError, RuntimeError) as error:
        return f"programs can't be isolated here: {error}"
    if probe.status != "passed":
        return f"programs can't be isolated here: the sandbox has a hole: {probe.status} {probe.detail}"
    return None


def protocol() -> str:
    """Return what a pass rate depends on of this sandbox and interpreter, for the protocol of a task."""
    offered = " ".join(f"{name}={importlib.metadata.version(name)}" for name in wall.OFFERED)
    return (
        f"clock={WAITING}x threads={wall.THREADS} compared=outside "
        f"python={sys.version_info.major}.{sys.version_info.minor} {offered}"
    )


def run(source: str, seconds: float, memory_mb: int, tests: Checks = NONE) -> Result:
    """Run the Python program ``source`` and its tests, for ``seconds`` of processor time at most.

    ``memory_mb`` MiB of address space, of which the interpreter itself takes about 30 and NumPy 100. What the program
    prints is thrown away. Raises UnavailableError where this machine cannot isolate it.
    """
    reason = missing()
    if reason:
        raise UnavailableError(reason)
    return _run(source, tests, seconds, memory_mb)


def _run(source: str, tests: Checks, seconds: float, memory_mb: int) -> Result:
    with contextlib.ExitStack() as stack:
        requests_end, requests = _pipe(stack)
        replies_end, replies = _pipe(stack)
        message, verdict = _pipe(stack)
        asked = {"source": tests.source, "asked": tests.asked, "given": tests.given}
        judging = stack.enter_context(
            Box(
                judge.main,
                {**asked, **wall_order(seconds, TESTS_MB)},
                {"requests": requests, "replies": replies_end, "verdict": verdict},
            )
        )
        running = stack.enter_context(
            Box(
                program.main,
                {"source": source, **wall_order(seconds, memory_mb)},
                {"requests": requests_end, "replies": replies},
            )
        )
        for end in (requests_end, requests, replies_end, replies, verdict):
            end.close()
        judging.open()
        running.open()
        start = time.monotonic()
        status, detail = _verdict(message, running, judging, seconds)
        return Result(status, detail, time.monotonic() - start, running.spent())


def wall_order(seconds: float, memory_mb: int) -> dict[str, Any]:
    """Return what a process is told to give up before it begins; see hemorrhage.sandbox.inside."""
    return {
        "detail": DETAIL,
        "file_bytes": wall.FILE_BYTES,
        "names": wall.NAMES,
        "user": wall.FIRST_USER + secrets.randbelow(wall.USERS) if os.geteuid() == 0 else None,
        "group": wall.NOBODY,
        "limits": wall.limits(seconds, memory_mb),
        "filters": [base64.b64encode(each).decode() for each in wall.filters()],
    }


class Box:
    """One bubblewrap and the interpreter in it; as a context, all of it is gone at its end."""

    def __init__(self, main: Callable[[], None], order: dict[str, Any], files: dict[str, FileIO]):
        """Start ``main``, which is told ``order`` and, by name, the numbers of the open ``files`` that it inherits."""
        self.first: int | None = None
        self.inner: int | None = None
        self.clock = 0
        self.started = 0.0
        self.cpu_seconds = 0.0
        self.tasks = Path("/nowhere")
        self.waited_seconds = 0.0
        self.stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            numbers = {name: file.fileno() for name, file in files.items()}
            ordered = _memory_file(stack, json.dumps({**order, **numbers}).encode())
            self.info, info_end = _pipe(self.stack)
            self.words, words_end = _pipe(self.stack)
            gate_end, self.gate = _pipe(self.stack)
            options = ["--info-fd", str(info_end.fileno()), "--block-fd", str(gate_end.fileno())]
            self.process = subprocess.Popen(
                wall.command(main, options),
                stdin=ordered,
                stdout=words_end,
                stderr=words_end,
                pass_fds=[info_end.fileno(), gate_end.fileno(), *numbers.values()],
                env={},
                cwd="/",
            )
            for end in (info_end, words_end, gate_end):
                end.close()
        self.ended = self._watch(self.process.pid)

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Let it begin, and return when its walls are closed. Raises UnavailableError where they can't be."""
        number = _first_process(self.info)
        if number is None:
            raise UnavailableError(_reason(_rest(self.words)))
        self.first = self._watch(number)
        # bubblewrap waits for this: until now its first process can't be gone and its number not be another's.
        self.gate.close()
        said, deadline = b"", time.monotonic() + START_SECONDS
        while inside.READY not in said:
            waiting = _readable(deadline - time.monotonic(), self.words.fileno())
            piece = os.read(self.words.fileno(), MESSAGE_BYTES) if waiting else b""
            if not piece or len(said) > MESSAGE_BYTES:
                raise UnavailableError(_reason(said))
            said += piece
        self._find_clock(number)

    def spent(self) -> float:
        """Return the processor time of the interpreter since its walls closed; as last read, where it has ended."""
        if self.inner is not None and not _readable(0, self.inner):
            with contextlib.suppress(OSError):
                self.cpu_seconds = time.clock_gettime(self.clock) - self.started
        return self.cpu_seconds

    def waited(self) -> float:
        """Return how long its threads were ready and had no processor; 0 where the kernel does not count it."""
        with contextlib.suppress(OSError, IndexError):
            waits = [int(file.read_text().split()[1]) for file in self.tasks.glob("*/schedstat")]
            # A thread that has ended takes its time with it.
            self.waited_seconds = max(self.waited_seconds, sum(waits) / 1e9)
        return self.waited_seconds

    def _find_clock(self, first: int) -> None:
        """Find the interpreter, the child of ``first``; where it has ended already there is no time to read."""
        try:
            children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
            if len(children) != 1:
                return
            self.inner = self._watch(int(children[0]))
        except (FileNotFoundError, ProcessLookupError):
            return
        # clock_getcpuclockid(3), which Python lacks.
        self.clock = (~int(children[0]) << 3) | 2
        self.tasks = Path(f"/proc/{children[0]}/task")
        with contextlib.suppress(OSError):
            self.started = time.clock_gettime(self.clock)

    def _watch(self, number: int) -> int:
        """Open a pidfd."""
        pidfd = os.pidfd_open(number)
        self.stack.callback(os.close, pidfd)
        return pidfd

    def close(self) -> None:
        """End the first process of the namespace, which ends when all others there have, and bubblewrap."""
        if self.first is None:
            self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)
            _readable(None, self.first)
        self.process.wait()
        self.stack.close()


def _first_process(info: FileIO) -> int | None:
    """Return the number of the sandbox's first process, which bubblewrap writes; None where it got nowhere."""
    if not _readable(START_SECONDS, info.fileno()):
        return None
    match = re.search(rb'"child-pid": (\d+)', os.read(info.fileno(), MESSAGE_BYTES))
    return int(match[1]) if match else None


def _reason(said: bytes) -> str:
    """Return the end of what bubblewrap, or the interpreter in it, said before a program was started, as one line."""
    return " ".join(said.decode(errors="replace").split())[-DETAIL:] or "bwrap started no program and gave no reason"


def _verdict(message: FileIO, running: Box, judging: Box, seconds: float) -> tuple[str, str]:
    """Return status and detail from the tests' pipe, or the time that is over, or why the tests end without any."""
    said, deadline, processors = b"", time.monotonic() + WAITING * seconds, os.cpu_count() or 1
    while b"\n" not in said:
        waits = deadline + running.waited() + judging.waited() - time.monotonic()
        left = seconds - max(running.spent(), judging.spent())
        if left <= 0:
            of = "" if running.spent() >= seconds else "its tests "
            return "timeout", f"{of}used up {seconds:g} s of processor time"
        if waits <= 0:
            return "timeout", f"still running after {WAITING * seconds:g} s"
        waiting = _readable(min(waits, max(left / processors, SHORTEST_WAIT)), message.fileno(), judging.ended)
        piece = os.read(message.fileno(), MESSAGE_BYTES) if message.fileno() in waiting else b""
        if waiting and not piece:
            return _without_verdict(running, seconds)
        said += piece
    verdict = json.loads(said)
    return verdict["status"], " ".join(verdict["detail"].split())[:DETAIL]


def _without_verdict(running: Box, seconds: float) -> tuple[str, str]:
    """Return status and detail where the tests came to no verdict: because of the program's end, or of their own.

    bubblewrap's exit code is the program's, or 128 + the signal that ended it.
    """
    if not _readable(1, running.ended):
        return "error", "it, or its tests, could not go on"
    code = running.process.wait()
    if code == 128 + signal.SIGXCPU:
        return "timeout", f"used up {seconds:g} s of processor time"
    if code > 128:
        return "error", f"killed by signal {code - 128}"
    return "error", f"ended before its tests did, with {code}"


def _readable(seconds: float | None, *files: int) -> set[int]:
    """Return those of ``files`` that have something to read or, pidfds, have ended; none when ``seconds`` are over."""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return {file for file, _ in poll.poll(None if seconds is None else max(seconds, 0) * 1000)}


def _rest(message: FileIO) -> bytes:
    """Read what lies in a pipe that nobody writes to any more."""
    os.set_blocking(message.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        return os.read(message.fileno(), MESSAGE_BYTES)
    return b""


def _pipe(stack: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Make a pipe, (reading end, writing end), closed with ``stack`` where it isn't before."""
    reading, writing = os.pipe()
    return (
        stack.enter_context(FileIO(reading, "rb")),
        stack.enter_context(FileIO(writing, "wb")),
    )


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> FileIO:
    """Make a file without a name that holds ``content``, to be read from its beginning; closed with ``stack``."""
    file = stack.enter_context(FileIO(os.memfd_create("hemorrhage"), "r+b"))
    file.write(content)
    file.seek(0)
    return file
