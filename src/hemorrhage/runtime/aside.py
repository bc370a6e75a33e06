"""A function that runs beside the rest of a step, in a process of its own, where the job was given a second core.

The process is forked, so that it has what was read and computed before, and its result comes back pickled.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

THREADS = "OMP_NUM_THREADS"
"""The environment variable in which Snakemake says how many threads a job may use."""


class Aside(Generic[Result]):
    """``function(*arguments)``, begun when this is made where there is a core for it, else when it is asked for."""

    def __init__(self, function: Callable[..., Result], *arguments: Any) -> None:
        self._call: Callable[[], Result] = partial(function, *arguments)
        self._child = 0
        if int(os.environ.get(THREADS, "1")) < 2 or not hasattr(os, "fork"):
            return
        self._pipe, remote = multiprocessing.Pipe(duplex=False)
        self._child = os.fork()
        if self._child == 0:
            self._pipe.close()
            _use_one_thread()
            _answer(remote, self._call)
        remote.close()

    def result(self) -> Result:
        """Return the result, or raise what the function raised. Raises RuntimeError where its process was killed."""
        if not self._child:
            return self._call()
        try:
            is_whole, answer = pickle.loads(self._pipe.recv_bytes())
        except EOFError:
            raise RuntimeError("a process of this job was killed, most likely for its memory") from None
        finally:
            self._pipe.close()
            os.waitpid(self._child, 0)
        if not is_whole:
            raise answer
        result: Result = answer
        return result


def _use_one_thread() -> None:
    """Let libraries start one thread each: this process has one core, and threads that wait for each other spin."""
    from threadpoolctl import threadpool_limits

    # Of those that are loaded, and of those that will be.
    threadpool_limits(1)
    os.environ[THREADS] = "1"


def _answer(pipe: multiprocessing.connection.Connection, call: Callable[[], object]) -> None:
    """Send in the child what ``call`` returns or raises, and end."""
    try:
        try:
            answer = pickle.dumps((True, call()))
        except Exception as error:
            answer = pickle.dumps((False, error))
        pipe.send_bytes(answer)
    finally:
        os._exit(0)
