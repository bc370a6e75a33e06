"""A session with an engine: its worker, started in its environment and driven over a pipe.

    with Session(ENGINES["llama_cpp"]) as session:
        model = session.load(folder / "model.gguf", threads=2, context=2048)
        for tile in session.score(tokens):
            ...

A worker that dies raises WorkerDiedError, one line with its last words; the next request starts another and loads the
model again. So a caller records a gap for one text and goes on with the next. Nothing outlives the session, nor this
process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from hemorrhage.engines import protocol
from hemorrhage.engines.environment import EngineError, python_of
from hemorrhage.engines.protocol import CutError, Frame, Logits, ProtocolError, Tile, Top
from hemorrhage.engines.registry import Engine

HOST = Path(__file__).parent / "workers" / "host.py"

PATIENCE = 1800.0
"""Seconds for one answer; loading a large model from a slow disk is one."""

RESTARTS = 3
"""Workers that die one after another without an answer to ``score`` or ``speed``, until no other is started."""

GRACE = 5.0
"""Seconds in which a worker that was told to close may end by itself."""

TAIL = 4096
"""Bytes of standard error in which a dead worker's last words are looked for."""


class WorkerDiedError(EngineError):
    """The worker is gone; the session starts another for the next request."""


@dataclass(frozen=True)
class Loaded:
    """A model in an engine: the size of its vocabulary, the kind of tiles that it gives, and facts for a manifest."""

    vocabulary: int
    gives: str
    facts: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second of each repetition, at once and one by one, and the most memory of the worker in bytes."""

    prefill: list[float]
    decode: list[float]
    peak_bytes: int


class Session:
    """A worker of ``engine``, which starts at once.

    Raises NotInstalledError where its environment is not there, EngineError where it can't be imported or is another
    release than the registry's. ``python`` and ``worker`` replace those of the environment. ``log`` is a file for what
    the engine prints; without one, its last words are kept until the session ends. The worker dies with the thread that
    opened the session.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        python: Path | None = None,
        worker: Path | None = None,
        log: Path | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.engine = engine
        self.patience = patience
        self._python = python or python_of(engine)
        self._worker = worker or engine.worker
        self._log = (log.open if log else tempfile.TemporaryFile)("a+b")
        self._process: subprocess.Popen[bytes] | None = None
        self._model: dict[str, object] | None = None
        self._deaths = 0
        self._unread = False
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker."""
        self.close()

    @property
    def process_id(self) -> int | None:
        """Id of the worker's process, which is that of its group; None where none runs."""
        return self._process.pid if self._process else None

    def load(self, path: Path, *, threads: int, context: int, dtype: str = "auto") -> Loaded:
        """Load a model for texts of up to ``context`` tokens, in place of the one before.

        ``dtype`` is ``auto``, what the engine does by itself, or ``float32``. Raises EngineError where it can't.
        """
        self._model, self._deaths = None, 0
        asked: dict[str, object] = {
            "request": "load", "path": str(path.absolute()), "threads": threads, "context": context, "dtype": dtype,
        }  # fmt: skip
        self._ready()
        loaded = self._load(asked)
        self._model = asked
        return loaded

    def score(self, tokens: NDArray[np.int32]) -> Iterator[Tile]:
        """Yield tiles of a text ``tokens`` [n], which together have the positions 0 to n - 2.

        Raises EngineError where the engine can't compute it, WorkerDiedError where it died, after tiles that are right.
        """
        self._ready()
        self._send({"request": "score"}, {"tokens": np.asarray(tokens, np.int32)})
        self._unread = True
        position = 0
        while True:
            frame = self._answer()
            if frame.header.get("done"):
                break
            tile = self._tile(frame, position)
            position += _rows(tile)
            yield tile
        self._unread = False
        if position != len(tokens) - 1:
            self._broken(f"gave {position} of {len(tokens) - 1} positions")
        self._deaths = 0

    def speed(self, *, prefill: int, decode: int, warm_up: int = 1, repetitions: int = 5) -> Speed:
        """Measure tokens per second of ``prefill`` tokens at once and ``decode`` tokens one by one."""
        self._ready()
        self._send(
            {"request": "speed", "prefill": prefill, "decode": decode, "warm_up": warm_up, "repetitions": repetitions}
        )
        header = self._answer().header
        self._deaths = 0
        try:
            return Speed(
                [prefill / float(seconds) for seconds in header["prefill"]],
                [decode / float(seconds) for seconds in header["decode"]],
                int(header["peak_bytes"]),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            self._broken(f"answered {dict(header)} to speed")

    def close(self) -> None:
        """End the worker and all that it started; may be called again."""
        if self._process is not None and self._process.poll() is None and not self._unread:
            with contextlib.suppress(EngineError, OSError):
                self.patience = GRACE
                self._send({"request": "close"})
                self._process.wait(GRACE if self._answer().header else 0)
        self._kill()
        self._log.close()

    def _ready(self) -> None:
        """Have a worker that waits for a request, with the model in it."""
        if self._log.closed:
            raise EngineError(f"{self.engine}: the session is closed")
        if self._unread:
            # The reader of the last text stopped before its end.
            self._kill()
        if self._process is not None and self._process.poll() is None:
            return
        if self._deaths > RESTARTS:
            raise EngineError(f"{self.engine}: {self._deaths} workers died one after another; no other is started")
        self._kill()
        self._start()
        if self._model is not None:
            self._load(self._model)

    def _start(self) -> None:
        command = [str(self._python), "-I", str(HOST), str(self._worker), str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **self.engine.variables},
        )
        header = self._answer().header
        if header.get("protocol") != protocol.VERSION:
            self._broken(f"speaks protocol {header.get('protocol')}, this is {protocol.VERSION}")
        version = header.get("version")
        if version != self.engine.version:
            self._kill()
            name = self.engine.name
            raise EngineError(
                f"{self.engine.title} {version} is installed, rows would say {self.engine.version}: "
                f"hemorrhage engine remove {name}; hemorrhage engine install {name}"
            )

    def _load(self, asked: Mapping[str, object]) -> Loaded:
        began = time.monotonic()
        self._send(asked)
        header = self._answer().header
        vocabulary, gives, facts = header.get("vocabulary"), header.get("gives"), header.get("facts")
        if not isinstance(vocabulary, int) or gives not in protocol.KINDS or not isinstance(facts, dict):
            self._broken(f"answered {dict(header)} to load")
        words = {str(name): str(value) for name, value in facts.items()}
        self._vocabulary = vocabulary
        return Loaded(vocabulary, str(gives), words, time.monotonic() - began)

    def _tile(self, frame: Frame, position: int) -> Tile:
        """Return a tile of a text, which is whole and begins at ``position``."""
        try:
            tile = protocol.tile(frame)
        except ProtocolError as error:
            self._broken(str(error))
        if tile.start != position or not _rows(tile):
            self._broken(f"gave {_rows(tile)} positions from {tile.start}, not those from {position}")
        if isinstance(tile, Logits) and tile.values.shape[1] != self._vocabulary:
            self._broken(f"gave logits of {tile.values.shape[1]} tokens of {self._vocabulary}")
        numbers = [tile.targets, tile.log_probabilities] if isinstance(tile, Top) else [tile.values]
        if any(np.isnan(each).any() for each in numbers):
            self._kill()
            raise EngineError(f"{self.engine}: gave numbers that are none (NaN) from position {position} on")
        return tile

    def _send(self, header: Mapping[str, object], arrays: Mapping[str, protocol.Array] | None = None) -> None:
        pipe = self._running().stdin
        assert pipe is not None
        try:
            for piece in protocol.encode(header, arrays):
                view = memoryview(piece)
                while view:
                    view = view[pipe.write(view) :]
        except BrokenPipeError:
            self._dead()

    def _answer(self) -> Frame:
        """Read one answer. Raises EngineError with its error, WorkerDiedError where there is none."""
        try:
            frame = protocol.decode(self._read)
        except CutError:
            self._dead()
        except ProtocolError as error:
            self._broken(str(error))
        if frame is None:
            self._dead()
        if "error" in frame.header:
            self._unread = False
            raise EngineError(f"{self.engine}: {frame.header['error']}")
        return frame

    def _read(self, size: int) -> bytes:
        pipe = self._running().stdout
        assert pipe is not None
        deadline, pieces, left = time.monotonic() + self.patience, [], size
        while left:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._broken(f"gave no answer within {self.patience:g} s")
            piece = os.read(pipe.fileno(), left)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineError(f"{self.engine}: no worker runs")
        return self._process

    def _ended(self) -> bool:
        """Tell whether the worker has ended; the end of its output comes a moment earlier."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running().wait(GRACE)
            return True
        return False

    def _dead(self) -> NoReturn:
        """Raise what is to be said of a worker whose output has ended."""
        status = self._running().returncode if self._ended() else None
        words = self._last_words()
        self._kill()
        self._deaths += 1
        how = "closed its output" if status is None else _ending(status)
        raise WorkerDiedError(f"{self.engine}: the worker {how}{f': {words}' if words else ''}")

    def _broken(self, what: str) -> NoReturn:
        """Kill a worker that does not keep to the protocol."""
        self._kill()
        self._deaths += 1
        raise WorkerDiedError(f"{self.engine}: the worker {what}; it was killed")

    def _kill(self) -> None:
        process, self._process, self._unread = self._process, None, False
        if process is None:
            return
        # The watcher of the worker does the same; what the engine started is of the same group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        self._log.flush()
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - TAIL))
        lines = self._log.read().decode(errors="replace").splitlines()
        words = [" ".join(line.split()) for line in lines if line.strip()]
        return _telling(words)[:400]


def _rows(tile: Tile) -> int:
    return len(tile.targets if isinstance(tile, Top) else tile.values)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


def _telling(lines: list[str]) -> str:
    """Return the line that says most: a failed check, else the last error, else the last line."""
    for mark in ("GGML_ASSERT", "Error", "error"):
        if named := [line for line in lines if mark in line]:
            return named[-1]
    return lines[-1] if lines else ""
