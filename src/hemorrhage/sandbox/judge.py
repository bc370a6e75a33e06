"""The process that runs a program's tests, inside a sandbox of its own: it never runs the program.

The names that tests ask the program for are stand-ins here: a call sends its arguments through a pipe, and what comes
back is a value of Python's own types (hemorrhage.sandbox.values). So comparisons, assertions, the order of lines and
the verdict are of this interpreter, which nothing of the program can reach. The standard library only.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

from hemorrhage.sandbox.inside import begin, ended
from hemorrhage.sandbox.values import NUMBERED, Coded, pack, unpack, write

ANSWER_BYTES = 16 << 20
"""Of one answer, at most."""
PIECE_BYTES = 1 << 16
SEED = 0
"""Of the values that tests draw."""


class ProgramError(Exception):
    """What a program raised, or that it answered with what is no value: status and detail."""


class Gone(BaseException):
    """The program has ended: no verdict, its end says why."""


class Line:
    """The pipes to and from the program."""

    def __init__(self, requests: int, replies: int):
        self.requests = requests
        self.replies = replies
        self.rest = b""

    def ask(self, do: str, **question: Any) -> Any:
        """Send a question and return the answer."""
        line = write({"do": do, **question})
        try:
            while line:
                line = line[os.write(self.requests, line) :]
        except BrokenPipeError:
            raise Gone from None
        return self.hear()

    def hear(self) -> Any:
        """Return the next answer. Raises ProgramError for an error, and for what is no answer."""
        try:
            answer = json.loads(self._read())
            if "value" in answer:
                return unpack(answer["value"], self._remote)
            status, detail = str(answer["status"]), str(answer["detail"])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise ProgramError("error", f"its answer is no value: {type(error).__name__}") from None
        # It may say of itself how it failed, and nothing else.
        raise ProgramError(status if status in ("failed", "memory", "blocked") else "error", detail)

    def _remote(self, number: Any, truth: Any, kind: Any) -> Remote:
        return Remote(self, number, truth, str(kind))

    def _read(self) -> bytes:
        pieces, size = [self.rest], len(self.rest)
        while b"\n" not in pieces[-1]:
            pieces.append(os.read(self.replies, PIECE_BYTES))
            size += len(pieces[-1])
            if not pieces[-1]:
                raise Gone
            if size > ANSWER_BYTES:
                raise ProgramError("error", f"its answer is longer than {ANSWER_BYTES} bytes")
        line, _, self.rest = b"".join(pieces).partition(b"\n")
        return line


class Remote:
    """An object of the program that can't cross. It is equal to itself alone, and has no order and no arithmetic."""

    __slots__ = ("_kind", "_line", "_number", "_truth")

    def __init__(self, line: Line, number: int, truth: bool | None, kind: str):
        for name, value in (("_line", line), ("_number", number), ("_truth", truth), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it in the program's process."""
        coded = {name: pack(value, number_of) for name, value in keywords.items()}
        return self._line.ask(
            "call", on=self._number, arguments=[pack(value, number_of) for value in arguments], keywords=coded
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._line.ask("get", on=self._number, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._line.ask("set", on=self._number, name=name, value=pack(value, number_of))

    def __iter__(self) -> Iterator[Any]:
        elements = self._line.ask("list", on=self._number)
        if type(elements) is not list:
            raise ProgramError("error", "its answer is no list")
        return iter(elements)

    def __bool__(self) -> bool:
        if type(self._truth) is not bool:
            raise TypeError(f"a {self._kind} has no truth")
        return self._truth

    def __repr__(self) -> str:
        return f"<{self._kind}>"


def number_of(value: object) -> list[Coded]:
    """Return what stands for an argument that is an object of the program. Raises TypeError for one of the tests'."""
    if type(value) is not Remote:
        raise TypeError(f"a {type(value).__name__} of the tests can't cross to the program")
    return [NUMBERED, value._number]


def judge(line: Line, order: dict[str, Any]) -> None:
    """Run what the tests are given and the tests; raises what they raise."""
    line.hear()
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(order["given"], "given.py", "exec"), names)
    names.update((name, line.ask("name", name=name)) for name in order["asked"])
    random.seed(SEED)
    exec(compile(order["source"], "tests.py", "exec"), names)


def main() -> None:
    """Send the verdict on the program of the order."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    order = begin()
    line = Line(order["requests"], order["replies"])
    try:
        judge(line, order)
        status, detail = "passed", ""
    except Gone:
        return
    except ProgramError as error:
        status, detail = error.args
    except BaseException as error:
        status, detail = ended(error, order["detail"])
    os.write(order["verdict"], write({"status": status, "detail": detail}))
    _wait()


def _wait() -> NoReturn:
    while True:
        signal.pause()
