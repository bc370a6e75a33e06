"""Basis of the commands of ``hemorrhage``: their exit codes, their parser, and an error that is one line.

A question is answered by the exit code, so that a script can ask it: 0 yes, 1 no, 2 cannot tell, 3 not measured. A
command that asks nothing ends with 0. 64 is a wrong use (EX_USAGE of sysexits.h), so that a typing error is never taken
for an answer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

YES = 0
NO = 1
CANNOT_TELL = 2
NOT_MEASURED = 3
USAGE = 64

ANSWERS = {YES: "yes", NO: "no", CANNOT_TELL: "cannot tell", NOT_MEASURED: "not measured"}
"""Exit code -> the same as a word, for ``--json``."""


class CommandError(ValueError):
    """A command that ends without its result; the message is one line for the user, ``status`` the exit code."""

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """An argument parser that answers wrong usage with one line and exit code 64."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(name: str, description: str, examples: Sequence[str], statuses: Mapping[int, str] | None = None) -> Parser:
    """Make the parser of ``hemorrhage NAME``; its help ends with examples and with what the exit codes mean."""
    meanings = {YES: "done", **(statuses or {}), USAGE: "wrong usage or wrong input"}
    lines = ["examples:" if len(examples) > 1 else "example:", *(f"  {example}" for example in examples)]
    lines += ["", "exit codes:", *(f"  {status:<3d} {meaning}" for status, meaning in meanings.items())]
    return Parser(
        prog=f"hemorrhage {name}",
        description=description,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def json_text(content: Any) -> str:
    """Write plain content as JSON; a number that is not finite, which JSON can't say, is null."""
    return json.dumps(_finite(content), indent=1)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
