"""The loop of a worker: ``python -I host.py WORKER PARENT``, in the engine's own environment.

WORKER is the file of an engine. It has a class ``Worker``, which nothing but its engine and numpy is needed for:

``name``, ``version``: str
    The engine and its release; both are known once the file is imported.
``load(path, threads, context, dtype) -> dict``
    Load the model at ``path`` (a folder of Hugging Face, or a file) for texts of up to ``context`` tokens. Returns
    ``vocabulary`` (int), ``gives`` ("logits", "hidden" or "top") and ``facts``, words for a manifest.
``score(tokens) -> iterator of (kind, header, arrays)``
    Tiles of one text, int32 [n], as hemorrhage.engines.protocol has them. ``header`` has ``start``; keep a tile below
    some 64 MiB.
``generate(prefill, decode) -> (seconds, seconds)``
    Time ``prefill`` tokens at once, then ``decode`` tokens one by one.
``close()``
    Give everything back.

A ValueError says that the input is to blame, any other exception that the engine failed; its first line is sent.

What the engine prints goes to standard error: file descriptor 1 is replaced before it is imported. PARENT is the
process that started this one. When it ends, however it does, a watcher kills the worker and all that the worker
started; the watcher needs nothing of the worker, which may be inside a kernel. Linux only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import ModuleType

PR_SET_PDEATHSIG = 1
WATCHED_MS = 1000


def load_file(file: Path, name: str) -> ModuleType:
    """Import a file under a name; its folder is not searched for other modules."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from hemorrhage.engines import protocol
else:
    protocol = load_file(Path(__file__).parent.parent / "protocol.py", "hemorrhage_engine_protocol")


class Worker(Protocol):
    """What the class of a worker's file has."""

    name: str
    version: str

    def load(self, path: str, threads: int, context: int, dtype: str) -> dict[str, object]:
        """Load a model."""

    def score(self, tokens: protocol.Array) -> Iterator[tuple[str, dict[str, object], dict[str, protocol.Array]]]:
        """Yield the tiles of a text."""

    def generate(self, prefill: int, decode: int) -> tuple[float, float]:
        """Return seconds of both."""

    def close(self) -> None:
        """Give everything back."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this worker is gone")


def watch(requests: int, answers: int) -> int:
    """Start the watcher and return its id: it kills this group of processes when either end of the requests is gone."""
    worker = os.getpid()
    if watcher := os.fork():
        return watcher
    os.close(answers)
    hung_up = select.poll()
    # No event is asked for: a hang-up is always told.
    hung_up.register(requests, 0)
    while os.getppid() == worker and not hung_up.poll(WATCHED_MS):
        pass
    os.killpg(worker, signal.SIGKILL)
    return 0


class Channel:
    """Frames with the process that started this one."""

    def __init__(self, requests: int, answers: int, watcher: int) -> None:
        self.watcher = watcher
        self.requests = os.fdopen(requests, "rb")
        self.answers = os.fdopen(answers, "wb")

    def read(self) -> protocol.Frame | None:
        """Return the next request, or None where there will be none."""
        return protocol.decode(self.requests.read)

    def answer(self, header: dict[str, object], arrays: dict[str, protocol.Array] | None = None) -> None:
        """Send one frame."""
        for piece in protocol.encode({"ok": True, **header} if "error" not in header else header, arrays):
            self.answers.write(piece)
        self.answers.flush()


def failure(error: BaseException) -> dict[str, object]:
    """Return the answer that says why there is none: one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "input" if isinstance(error, ValueError) else "engine"
    return {"error": text if kind == "input" else f"{type(error).__name__}: {text}", "class": kind}


def serve(worker: Worker, channel: Channel) -> None:
    """Answer requests until ``close`` or the end of them."""
    channel.answer({"protocol": protocol.VERSION, "engine": worker.name, "version": worker.version})
    while (frame := channel.read()) is not None:
        asked = frame.header.get("request")
        try:
            if asked == "score":
                for kind, header, arrays in worker.score(frame.arrays["tokens"]):
                    channel.answer({"tile": kind, **header}, arrays)
                channel.answer({"done": True})
            else:
                channel.answer(reply(worker, str(asked), frame.header, channel.watcher))
        except BrokenPipeError:
            return
        # Whatever an engine raises is its answer.
        except Exception as error:
            channel.answer(failure(error))
        if asked == "close":
            return


def reply(worker: Worker, asked: str, header: Any, watcher: int) -> dict[str, object]:
    """Answer a request that takes one frame."""
    if asked == "load":
        return worker.load(header["path"], header["threads"], header["context"], header["dtype"])
    if asked == "speed":
        prefill, decode = header["prefill"], header["decode"]
        for _ in range(header["warm_up"]):
            worker.generate(prefill, decode)
        times = [worker.generate(prefill, decode) for _ in range(header["repetitions"])]
        return {
            "prefill": [first for first, _ in times],
            "decode": [second for _, second in times],
            "peak_bytes": peak_bytes(watcher),
        }
    if asked == "close":
        worker.close()
        return {}
    raise ValueError(f"{asked!r} is not a request of protocol {protocol.VERSION}")


def peak_bytes(watcher: int) -> int:
    """Return the most resident memory that each process of this group had, all together, without the watcher's."""
    total, own = 0, os.getpgid(0)
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        try:
            if process == watcher or os.getpgid(process) != own:
                continue
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            # It has just ended.
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return total


def main() -> None:
    """Run a worker; see the module's docstring."""
    file, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    channel = Channel(requests, answers, watch(requests, answers))
    try:
        worker: Worker = load_file(file, "hemorrhage_engine_worker").Worker()
    # An engine that can't be imported may raise anything.
    except Exception as error:
        channel.answer({**failure(error), "class": "engine"})
        return
    serve(worker, channel)
    sys.stderr.flush()
    # Threads of an engine that never end must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
