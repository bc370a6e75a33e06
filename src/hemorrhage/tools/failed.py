"""Variants that failed, each with its reason: ``hemorrhage failed``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hemorrhage.runtime.command import NO, YES, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.family import Family
from hemorrhage.study.outputs import advice, list_failures


def parser() -> Parser:
    """Make the command line's parser."""
    return command_parser(
        "failed",
        "Name the variants of params.yaml that failed, each with its reason. The report holds the others.",
        ["hemorrhage failed"],
        {YES: "no variant failed", NO: "a variant failed"},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the failures to standard error."""
    parser().parse_args(argv)
    family = Family.read()
    reasons = list_failures(family)
    if reasons:
        print(advice(family, reasons), file=sys.stderr)
    return NO if reasons else YES
