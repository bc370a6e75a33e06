r"""Imports the libraries once, and forks a child of itself for each job.

    python -m hemorrhage.runtime.service.server LISTENER

Listens on LISTENER, a descriptor bound to ``client.SOCKET`` in the working directory, and ends when its standard input
does: whoever started it holds the other end, and can't leave it behind however he dies. Jobs that run go on.

A job finds only libraries imported. This package's modules are read from disk by each job, so that it runs the
code of its own time. A job gets a child only where everything that was read at an import is as it would find it:
interpreter, folder, installed distributions, and the environment but for ``MAY_DIFFER``. Else it is refused, and the
client runs it without the service.

Each connection has a process of its own that forks the job, passes on signals, and says how the job ended:

    client: "\n" with its standard streams, a line of JSON (``arguments``, ``executable``, ``folder``, ``environment``)
    answer: "begun", or "refused: why"
    client: a byte for each signal; nothing, when it is killed, and then the job is killed
    answer: the exit status as subprocess gives it
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hemorrhage.runtime.service import client, job

LIBRARIES = (
    "accelerate",
    "compressed_tensors.compressors",
    "jinja2",
    "pandas",
    "pandera.pandas",
    "pyarrow.parquet",
    "pydantic",
    "safetensors.torch",
    "scipy.linalg",
    "scipy.stats",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
"""Modules that the steps import. One that is missing here costs each job its import again, nothing more."""

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Variables by which Snakemake says how many threads a job may use."""

MAY_DIFFER = {
    *THREADS,
    *("TMPDIR", "TMP", "TEMP", "TEMPDIR"),
    *("HEMORRHAGE_DEVICE", "CUDA_VISIBLE_DEVICES"),
    *("SHLVL", "PWD", "OLDPWD", "_"),
    *("OPENBLAS_THREAD_TIMEOUT", "GOMP_SPINCOUNT"),
}
"""Environment variables that are read after a job has begun, or set once more there, or by this package itself."""

UNIFIED = "/dev/nvidia-uvm"

TO_ASK = 10
"""Seconds that a client has for its request."""


class RefusedError(Exception):
    """Raised where a job does not get a child; the message says why."""


class World:
    """The environment that was read when the libraries were imported."""

    def __init__(self) -> None:
        self.environment = relevant(os.environ)
        self.installed = installed()

    def check(self, request: Mapping[str, Any]) -> None:
        """Raise RefusedError where a job would find something else."""
        if request["executable"] != sys.executable:
            raise RefusedError(f"{request['executable']} is not {sys.executable}")
        if request["folder"] != str(Path.cwd()):
            raise RefusedError(f"{request['folder']} is not {Path.cwd()}")
        wanted = relevant(request["environment"])
        different = sorted(
            name for name in {*wanted, *self.environment} if wanted.get(name) != self.environment.get(name)
        )
        if different:
            raise RefusedError(f"other values of {', '.join(different)}")
        if installed() != self.installed:
            raise RefusedError("the service or an installed distribution has changed")
        threads(request["environment"])


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may be read at an import."""
    return {name: value for name, value in environment.items() if name not in MAY_DIFFER}


def installed() -> dict[str, int]:
    """Modification times of this package's files, and of the folders in which distributions come and go."""
    paths = [*Path(__file__).parent.glob("*.py"), *map(Path, sys.path[1:])]
    return {str(path): path.stat().st_mtime_ns for path in paths if path.exists()}


def threads(environment: Mapping[str, str]) -> int:
    """Threads a job may use. Raises RefusedError where its environment does not say, or says several things."""
    count = environment.get("OMP_NUM_THREADS", "")
    if not count.isdecimal() or any(environment.get(name, count) != count for name in THREADS):
        raise RefusedError(f"{', '.join(THREADS)} say no number of threads, or several")
    return int(count)


def preload() -> None:
    """Import the libraries as a step finds them (runtime.step). Raises RuntimeError where one touched the GPU."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Libraries ask on import whether there is a GPU: by NVML torch answers that without initialising CUDA.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in LIBRARIES:
        if over():
            break
        importlib.import_module(name)
    if cuda_initialised():
        raise RuntimeError("importing the libraries initialised CUDA")
    # Pages that the collector does not write to stay shared.
    gc.collect()
    gc.freeze()


def cuda_initialised() -> bool:
    """Tell whether this process has initialised CUDA, after which its children can't use a GPU.

    That opens the driver's file of unified memory, which asking NVML for devices does not.
    """
    return any(file.is_symlink() and UNIFIED in str(file.readlink()) for file in Path("/proc/self/fd").iterdir())


def listen(path: Path) -> socket.socket:
    """Open a listening socket that only this user can connect to."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o077)
    listener.bind(str(path))
    os.umask(before)
    listener.listen(128)
    return listener


def over(listener: socket.socket | None = None) -> bool:
    """Tell whether standard input has ended; waits until it has, or a client is there, where a listener is given."""
    ready = select.select([0, *([listener.fileno()] if listener else [])], [], [], None if listener else 0)[0]
    return 0 in ready


def serve(listener: socket.socket, world: World) -> list[str] | None:
    """Fork for each job until standard input ends. Returns a job's arguments in its child, None in the server."""
    while not over(listener):
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return attend(connection, world)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return None


def attend(connection: socket.socket, world: World) -> list[str]:
    """One connection: returns the job's arguments in the job, and never returns in the process that watches it."""
    connection.settimeout(TO_ASK)
    try:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        request = json.loads(connection.makefile().readline())
        world.check(request)
        connection.sendall(b"begun\n")
    except RefusedError as reason:
        print(f"refused {request['arguments'][1]}: {reason}", file=sys.stderr)
        with contextlib.suppress(OSError):
            connection.sendall(f"refused: {reason}\n".encode())
        os._exit(0)
    except (OSError, ValueError):
        # The client is gone.
        os._exit(0)
    watcher = os.getpid()
    child = os.fork()
    if child == 0:
        # The connection stays open here: when the client finds it closed without a status, this process has ended.
        become(request, streams, watcher)
        return list(request["arguments"])
    with contextlib.suppress(OSError):
        watch(connection, child, streams)
    os._exit(0)


def become(request: Mapping[str, Any], streams: list[int], watcher: int) -> None:
    """Make this process look as if the client had started it."""
    os.setpgid(0, 0)
    end_with(watcher)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    use_threads(threads(os.environ))


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def use_threads(count: int) -> None:
    """Give torch, and the OpenBLAS of numpy and scipy, as many threads; they have read the environment long ago."""
    if count == 1:
        return
    import torch

    torch.set_num_threads(count)
    for set_num_threads in openblas():
        set_num_threads(count)


def openblas() -> Iterator[Any]:
    """``set_num_threads`` of every OpenBLAS in this process; wheels give it a prefix and a suffix of their own."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    for path in sorted(set(re.findall(r"/\S*openblas\S*", maps))):
        library = ctypes.CDLL(path)
        for name in ("openblas_set_num_threads", "openblas_set_num_threads64_"):
            for function in (name, f"scipy_{name}"):
                if hasattr(library, function):
                    yield getattr(library, function)


def watch(connection: socket.socket, child: int, streams: list[int]) -> None:
    """Pass signals on to the job, and its exit status back; kill it when the client is gone."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        # Here too, so that a signal finds the group whoever comes first.
        os.setpgid(child, child)
    # The job alone holds its streams: whoever reads them finds their end.
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, connection.fileno()], [], [])[0]:
        signals = heard(connection) or bytes([signal.SIGKILL])
        for number in signals:
            os.killpg(child, number)
        if signal.SIGKILL in signals:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(f"{status}\n".encode())


def heard(connection: socket.socket) -> bytes:
    """Signals that the client sent; nothing where it is gone."""
    try:
        return connection.recv(16)
    except OSError:
        return b""


def start(source: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a server for the jobs of this process, which run with ``source`` as their PYTHONPATH.

    It lives while the result's ``stdin`` is open, at most as long as this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(source), **dict.fromkeys(THREADS, "1")}
    # Bound here, so that the first job finds it, and waits until the libraries are imported.
    with listen(Path(client.SOCKET)) as listener, log.open("wb") as stream:
        # In a session of its own: what the terminal's user interrupts is the jobs.
        return subprocess.Popen(
            [sys.executable, "-m", "hemorrhage.runtime.service.server", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )


def main() -> None:
    """Serve; in each job's child, run the job."""
    world = World()
    listener = socket.socket(fileno=int(sys.argv[1]))
    preload()
    print(f"imported the libraries: {time.process_time():.1f} CPU seconds", file=sys.stderr)
    arguments = serve(listener, world)
    if arguments is not None:
        usage, module, *rest = arguments
        job.run(Path(usage), module, rest)
    listener.close()
    Path(client.SOCKET).unlink(missing_ok=True)
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass
    # Nothing is left to do that taking the modules apart would be good for.
    os._exit(0)


if __name__ == "__main__":
    main()
