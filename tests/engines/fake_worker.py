"""A worker without an engine: logits are a function of the token, and some tokens and models make it misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 11

ABORT, REFUSE, HANG, NAN, SHORT, FRAMELESS, KILL_AT_ROW = 10, 9, 8, 7, 6, 5, 4
"""Tokens that a text begins with, to have it go wrong."""

if __name__ == "hemorrhage_engine_worker":
    print("an engine prints when it is imported")
    os.system("echo and so does what it starts")
    if os.environ.get("FAKE_ENGINE") == "missing":
        raise ImportError("libfake.so is not there\nand this is a second line")


def logits(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """What the model says after each token: float32 [n, VOCABULARY]."""
    values: NDArray[np.float32] = np.sin(np.outer(tokens + 1, np.arange(VOCABULARY) + 1)).astype(np.float32)
    return values


class Worker:
    name = "fake"
    version = os.environ.get("FAKE_ENGINE", "1.0")

    def __init__(self) -> None:
        self.gives = ""

    def load(self, path: str, threads: int, context: int, dtype: str) -> dict[str, Any]:
        if path.endswith("missing"):
            raise ValueError(f"{path}: no such file")
        if path.endswith("aborts"):
            sys.stderr.write("GGML_ASSERT(n > 0) failed\nBacktrace:\n")
            os.abort()
        self.gives = path.rpartition("/")[2]
        # Engines start processes, too.
        self.child = subprocess.Popen(["sleep", "1000"])
        return {"vocabulary": VOCABULARY, "gives": self.gives, "facts": {"threads": threads, "child": self.child.pid}}

    def score(self, tokens: NDArray[np.int32]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        print("it prints while it computes", flush=True)
        first = tokens[0]
        if first == ABORT:
            sys.stderr.write("GGML_ASSERT(n > 0) failed\nBacktrace:\n")
            sys.stderr.flush()
            os.abort()
        if first == REFUSE:
            raise RuntimeError("out of memory\nreally")
        if first == HANG:
            time.sleep(1000)
        if first == FRAMELESS:
            os.write(max(_pipes()), b"loading model... 17 %")
        values = logits(tokens[:-1])
        if first == NAN:
            values[-1] = np.nan
        if first == SHORT:
            values = values[:-1]
        for start in range(0, len(values), 4):
            if first == KILL_AT_ROW and start:
                os.kill(os.getpid(), signal.SIGKILL)
            yield (
                self.gives,
                {"start": start, "final_norm": False},
                self._arrays(values[start : start + 4], tokens[start + 1 : start + 5]),
            )

    def _arrays(self, values: NDArray[np.float32], targets: NDArray[np.int32]) -> dict[str, Any]:
        if self.gives != "top":
            return {"values": values}
        ids = np.argsort(-values, axis=1)[:, :3]
        rows = np.arange(len(values))
        return {
            "ids": ids, "log_probabilities": np.take_along_axis(values, ids, 1), "targets": values[rows, targets[rows]],
        }  # fmt: skip

    def generate(self, prefill: int, decode: int) -> tuple[float, float]:
        return 0.5, 2.0

    def close(self) -> None:
        pass


def _pipes() -> Iterator[int]:
    for name in Path("/proc/self/fd").iterdir():
        try:
            if str(name.readlink()).startswith("pipe"):
                yield int(name.name)
        except OSError:
            continue
