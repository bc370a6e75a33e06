"""The process that runs a program that nobody has read, inside the sandbox: it answers what its tests ask.

The first line that it sends says how running the program ended. Then each line that it reads is a question, and each
that it sends an answer: a value, or an error. Nothing that it sends is a verdict. The standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from typing import Any

from hemorrhage.sandbox.inside import begin, ended
from hemorrhage.sandbox.values import NUMBERED, Coded, pack, unpack, write

SPARE_BYTES = 1 << 20
"""Kept back, so that there is some memory left to say that there is none."""


class Program:
    """What the program has defined, and the objects that its tests know by their numbers."""

    def __init__(self, source: str):
        self.module = types.ModuleType("program")
        self.source = source
        self.objects: list[object] = []

    def load(self) -> None:
        """Run the program. As in the harness of HumanEval, its ``__name__`` is not ``__main__``."""
        sys.modules["program"] = self.module
        exec(compile(self.source, "program.py", "exec"), self.module.__dict__)

    def answer(self, question: dict[str, Any]) -> Any:
        """Return what is asked for: a name, an attribute, the result of a call, or the elements of an object."""
        act = question["do"]
        if act == "name":
            if question["name"] not in self.module.__dict__:
                raise NameError(f"name {question['name']!r} is not defined")
            return self.module.__dict__[question["name"]]
        on = self.objects[question["on"]]
        if act == "get":
            return getattr(on, question["name"])
        if act == "set":
            return setattr(on, question["name"], self._value(question["value"]))
        if act == "list":
            return list(on)
        keywords = {name: self._value(value) for name, value in question["keywords"].items()}
        return on(*map(self._value, question["arguments"]), **keywords)

    def number(self, value: object) -> list[Coded]:
        """Keep an object that cannot cross; what stands for it is its number, its truth if it has one, and its type."""
        self.objects.append(value)
        try:
            truth = bool(value)
        except Exception:
            truth = None
        return [NUMBERED, len(self.objects) - 1, truth, str(type(value).__name__)]

    def _value(self, coded: Coded) -> Any:
        return unpack(coded, lambda number: self.objects[number])


def main() -> None:
    """Run the program of the order, and answer until the tests are through; the end comes from outside."""
    order = begin()
    program = Program(order["source"])
    send, write_line, wait, detail = os.write, write, signal.pause, order["detail"]
    spare = bytearray(SPARE_BYTES)

    def reply(act: Any, *given: Any) -> None:
        nonlocal spare
        try:
            line = write_line({"value": pack(act(*given), program.number)})
        except BaseException as error:
            spare = bytearray(0)
            status, said = ended(error, detail)
            line = write_line({"status": status, "detail": said})
        while line:
            line = line[send(order["replies"], line) :]

    reply(program.load)
    with os.fdopen(order["requests"], "rb") as questions:
        for line in questions:
            reply(program.answer, json.loads(line))
    while True:
        wait()
