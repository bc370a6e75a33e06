"""Running one Python program that nobody has read: generated code and its tests.

The wall is bubblewrap (``bwrap``, version 0.8 or newer) and a seccomp filter from libseccomp; where either is missing
or doesn't hold, nothing is run (``missing`` says why). A program sees

- namespaces of its own for processes, network (a loopback device that reaches nothing), mounts, IPC and host name. When
  the first process of its namespace dies the kernel kills whatever is left in it, and ``run`` returns only after that;
- /usr, the interpreter and the dynamic linker's cache, read only; /dev/null; and /tmp, its working directory, which is
  empty, lies in memory, holds FILE_BYTES and vanishes with it. No /proc, no /sys, no other device;
- no inherited file but the pipe of the verdict, no environment, no terminal;
- the user nobody: for root by leaving root, without a capability; for anybody else in a user namespace;
- resource limits on processes, address space, processor time, files and their size. The limit on processes is one, and
  threads count: the address space of one process, and FILE_BYTES, are then all the memory there is. What isn't counted
  in it (System V segments, queues, memfd) the filter refuses, and with it sockets of every family (AF_VSOCK knows no
  namespace), tracing, mounting, namespaces, BPF, io_uring and keys.

The verdict comes from code that runs after the tests: it sends a token, which is drawn anew for every program, through
a pipe. Leaving early, in whatever way, sends nothing and does not pass. What remains possible: program and tests share
an interpreter, as in the harness of HumanEval (arXiv 2107.03374), so code that was written against this very file can
find the token in the frames above it, and an object that equals everything passes an assertion of equality. What the
kernel keeps for names in /tmp is bounded by time only. And there may be a flaw of the kernel behind the system calls
that are left.

    bwrap: https://github.com/containers/bubblewrap, libseccomp: https://github.com/seccomp/libseccomp
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import inspect
import json
import math
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

STATUSES = ("passed", "failed", "error", "timeout", "memory", "blocked")
"""``failed``: an assertion did not hold; ``error``: any other exception, or an end before that of the tests;
``memory``: MemoryError; ``blocked``: it wanted what the sandbox refuses, and did not catch the refusal."""

NOBODY = 65534
PROCESSES = 1
FILE_BYTES = 16 << 20
OPEN_FILES = 64
DETAIL = 200
"""Characters of ``Result.detail``, at most."""
MESSAGE_BYTES = 4096
"""Read from a program's pipe, at most."""
START_SECONDS = 20
"""For bubblewrap to set up its namespaces on a busy machine; the program's own clock starts after."""

REFUSED = (
    *("socket", "socketpair", "io_uring_setup"),
    *("memfd_create", "shmget", "semget", "msgget", "mq_open", "add_key", "request_key", "keyctl"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "kcmp", "perf_event_open"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "name_to_handle_at", "open_by_handle_at", "quotactl", "swapon", "swapoff", "acct"),
    *("bpf", "userfaultfd", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    *("reboot", "syslog", "personality", "fanotify_init"),
)
"""System calls that fail with EPERM."""

PROBE = """
import os, socket

def refused(act, *given):
    try:
        act(*given)
    except OSError:
        return
    raise AssertionError(act.__name__)

refused(os.fork)
refused(socket.socket)
refused(os.setuid, 0)
refused(os.chroot, "/tmp")
for folder in ("/", "/usr", "/dev", os.path.dirname(os.__file__)):
    refused(open, os.path.join(folder, "written"), "w")
assert os.getuid() == os.getgid() == 65534 and not os.getgroups()
assert set(os.listdir("/")) <= {"dev", "etc", "lib", "lib64", "tmp", "usr", PREFIX.split("/")[1]}
assert not os.path.exists("/proc/self") and os.listdir("/tmp") == []
"""
"""Tries the doors; PREFIX is put in front."""


class UnavailableError(RuntimeError):
    """Raised where the machine has no sandbox or could not start one: nothing was run."""


@dataclass(frozen=True)
class Result:
    """End of a program: one of STATUSES, one line of detail, and wall-clock seconds from start to verdict."""

    status: str
    detail: str
    seconds: float


@functools.cache
def missing() -> str | None:
    """Say in one line why programs can't be run on this machine, or return None; checked once per process."""
    if not sys.platform.startswith("linux"):
        return f"programs need the namespaces of Linux, this is {sys.platform}"
    for tool, package in {"bwrap": "bubblewrap, 0.8 or newer", "setpriv": "util-linux"}.items():
        if shutil.which(tool) is None:
            return f"programs need {tool} (Debian package {package}), which is not installed"
    if importlib.util.find_spec("pyseccomp") is None:
        return "programs need the package pyseccomp, which is not installed"
    try:
        probe = _run(f"PREFIX = {sys.base_prefix!r}\n{PROBE}", seconds=10, memory_mb=512)
    except (UnavailableError, OSError, RuntimeError) as error:
        return f"programs can't be isolated here: {error}"
    if probe.status != "passed":
        return f"programs can't be isolated here: the sandbox has a hole: {probe.status} {probe.detail}"
    return None


def run(program: str, seconds: float, memory_mb: int) -> Result:
    """Run the Python source ``program``, which holds its own tests, for ``seconds`` of wall-clock time at most.

    ``memory_mb`` MiB of address space, of which the interpreter itself takes about 30. Only the standard library of
    this interpreter is there to import. What the program prints is thrown away. As in the harness of HumanEval, its
    ``__name__`` is not ``__main__``. Raises UnavailableError where this machine cannot isolate it.
    """
    reason = missing()
    if reason:
        raise UnavailableError(reason)
    return _run(program, seconds, memory_mb)


def _run(program: str, seconds: float, memory_mb: int) -> Result:
    token = secrets.token_hex(16)
    order = {"token": token, "program": program, "detail": DETAIL, "limits": _limits(seconds, memory_mb)}
    with contextlib.ExitStack() as stack:
        ordered = _memory_file(stack, json.dumps(order).encode())
        rules = _memory_file(stack, _filter())
        info, info_end = _pipe(stack)
        message, message_end = _pipe(stack)
        gate_end, gate = _pipe(stack)
        given = {"--info-fd": info_end, "--block-fd": gate_end, "--seccomp": rules}
        options = [word for option, file in given.items() for word in (option, str(file.fileno()))]
        process = subprocess.Popen(
            [*_wall(), *options, "--", *_interpreter()],
            stdin=ordered,
            stdout=message_end,
            stderr=message_end,
            pass_fds=[file.fileno() for file in given.values()],
            env={},
            cwd="/",
        )
        first = None
        try:
            for end in (info_end, message_end, gate_end):
                end.close()
            first = _first_process(info)
            if first is None:
                raise UnavailableError(_reason(_rest(message)))
            # bubblewrap waits for this: until now its first process can't be gone and its number not be another's.
            gate.close()
            said = _until_ready(message, f"{token} ready\n".encode())
            start = time.monotonic()
            verdict = _verdict(process, message, said, token, seconds)
            taken = time.monotonic() - start
        finally:
            _kill(process, first)
        status, detail = verdict or _without_verdict(process.returncode)
        return Result(status, detail, taken)


def _first_process(info: FileIO) -> int | None:
    """Open a pidfd of the sandbox's first process, of which bubblewrap writes the number; None where it got nowhere."""
    if not _readable(START_SECONDS, info.fileno()):
        return None
    match = re.search(rb'"child-pid": (\d+)', os.read(info.fileno(), MESSAGE_BYTES))
    return os.pidfd_open(int(match[1])) if match else None


def _until_ready(message: FileIO, ready: bytes) -> bytes:
    """Wait for the line ``ready``, with which the program begins, and return what came after it."""
    said, deadline = b"", time.monotonic() + START_SECONDS
    while ready not in said:
        waiting = _readable(deadline - time.monotonic(), message.fileno())
        piece = os.read(message.fileno(), MESSAGE_BYTES) if waiting else b""
        if not piece or len(said) > MESSAGE_BYTES:
            raise UnavailableError(_reason(said))
        said += piece
    return said.split(ready, 1)[1]


def _reason(said: bytes) -> str:
    """Return the end of what bubblewrap, or the interpreter in it, said before a program was started, as one line."""
    return " ".join(said.decode(errors="replace").split())[-DETAIL:] or "bwrap started no program and gave no reason"


def _verdict(
    process: subprocess.Popen[bytes], message: FileIO, said: bytes, token: str, seconds: float
) -> tuple[str, str] | None:
    """Read status and detail from the program's pipe, or the time; None where bubblewrap ends before.

    ``said`` was read from the pipe already. A program that sends more than MESSAGE_BYTES isn't listened to any more.
    """
    deadline = time.monotonic() + seconds
    watched = os.pidfd_open(process.pid)
    try:
        listening = True
        while not (verdict := _message(said, token)):
            sources = [message.fileno(), watched] if listening else [watched]
            waiting = _readable(deadline - time.monotonic(), *sources)
            if not waiting:
                return "timeout", f"still running after {seconds:g} s"
            if message.fileno() not in waiting:
                return None
            piece = os.read(message.fileno(), MESSAGE_BYTES)
            said += piece
            listening = bool(piece) and len(said) < MESSAGE_BYTES
        return verdict
    finally:
        os.close(watched)


def _message(said: bytes, token: str) -> tuple[str, str] | None:
    """Return the status and detail of the first complete line with the right token."""
    for line in said.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            verdict = json.loads(line)
            if verdict["token"] == token and verdict["status"] in STATUSES:
                return verdict["status"], " ".join(str(verdict["detail"]).split())[:DETAIL]
    return None


def _without_verdict(code: int) -> tuple[str, str]:
    """Return status and detail by bubblewrap's exit code, which is the program's, or 128 + the signal that ended it."""
    if code == 128 + signal.SIGXCPU:
        return "timeout", "its processor time was used up"
    if code > 128:
        return "error", f"killed by signal {code - 128}"
    return "error", f"ended before its tests did, with {code}"


def _kill(process: subprocess.Popen[bytes], first: int | None) -> None:
    """End the first process of the namespace, a pidfd, which ends when all others there have, and bubblewrap."""
    if first is None:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        _readable(None, first)
        os.close(first)
    process.wait()


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


def _limits(seconds: float, memory_mb: int) -> dict[str, int]:
    """Return the resource limits, soft and hard; bytes, seconds and counts as setrlimit(2) takes them."""
    return {
        "RLIMIT_AS": memory_mb << 20,
        "RLIMIT_CPU": math.ceil(seconds) + 1,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }


@functools.cache
def _filter() -> bytes:
    """Make the seccomp filter as BPF; calls through another ABI of the processor end the program."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in REFUSED:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), call)
    with FileIO(os.memfd_create("filter"), "r+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.readall()


def _wall() -> list[str]:
    """Make the command line of bubblewrap up to the file descriptors."""
    words = [_program("bwrap"), "--die-with-parent", "--new-session", "--clearenv"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        # No user namespace: the limit on processes does not bind who is root outside of one.
        words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--disable-userns", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    words += ["--ro-bind", "/usr", "/usr"]
    for folder in (Path("/lib"), Path("/lib64")):
        if folder.is_symlink():
            words += ["--symlink", str(folder.readlink()), str(folder)]
        else:
            words += ["--ro-bind-try", str(folder), str(folder)]
    prefix = Path(sys.base_prefix)
    outside = not prefix.is_relative_to("/usr")
    # bubblewrap makes the folders above what it binds as closed as they are outside; root's home may be one.
    for above in [Path("/dev"), Path("/etc"), *([*reversed(prefix.parents)][1:] if outside else [])]:
        words += ["--perms", "0755", "--dir", str(above)]
    if outside:
        words += ["--ro-bind", str(prefix), str(prefix)]
    words += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    words += ["--dev-bind", "/dev/null", "/dev/null", "--perms", "0777", "--size", str(FILE_BYTES), "--tmpfs", "/tmp"]
    # Equal hashes in every run: the order of a set of strings is then the program's, not the run's.
    words += ["--setenv", "PYTHONHASHSEED", "0", "--setenv", "PYTHONUTF8", "1"]
    return [*words, "--chdir", "/tmp", "--remount-ro", "/"]


def _interpreter() -> list[str]:
    """Make the command line of this interpreter: no environment, site-packages, user's folder or bytecode."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    words = [executable, "-s", "-S", "-P", "-B", "-c", f"{inspect.getsource(_inside)}\n_inside()\n"]
    if os.geteuid() != 0:
        return words
    return [_program("setpriv"), "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--", *words]


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"{name} is not installed")
    return os.path.realpath(path)


def _inside() -> None:
    """Run a program within the sandbox, which has the text of this function only.

    Reads its order from standard input, gives up what it has, runs the program, and writes the verdict into what was
    standard output.
    """
    import errno
    import json
    import os
    import resource
    import signal
    import sys
    import types

    write, wait, encode = os.write, signal.pause, json.dumps
    order = json.loads(sys.stdin.buffer.read())
    verdict = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    os.close(null)
    for limit, value in order["limits"].items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    walls = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EAGAIN, errno.ENOSPC, errno.EFBIG, errno.EMFILE}
    program = types.ModuleType("program")
    sys.modules["program"] = program
    write(verdict, f"{order['token']} ready\n".encode())
    spare = bytearray(1 << 20)
    try:
        exec(compile(order["program"], "program.py", "exec"), program.__dict__)
        status, detail = "passed", ""
    except BaseException as error:
        # With the memory that was kept back there is some to say so.
        del spare
        name, detail = type(error).__name__, ""
        try:
            detail = f"{name}: {error}"[: order["detail"]]
        except BaseException:
            detail = name
        status = "error"
        if isinstance(error, AssertionError):
            status = "failed"
        elif isinstance(error, MemoryError):
            status = "memory"
        elif (isinstance(error, OSError) and error.errno in walls) or "start new thread" in detail:
            status = "blocked"
    write(verdict, encode({"token": order["token"], "status": status, "detail": detail}).encode() + b"\n")
    # The end comes from outside: bubblewrap, still there, then collects its first process, and no one else has to.
    while True:
        wait()
