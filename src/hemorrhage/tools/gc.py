"""Outputs removed that params.yaml no longer asks for: ``hemorrhage gc``."""

from __future__ import annotations

from collections.abc import Sequence

from hemorrhage.runtime.command import YES, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.family import Family
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.outputs import collect_garbage


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "gc",
        "Remove outputs that params.yaml no longer asks for, and what killed jobs left. DVC's stages do so themselves.",
        ["hemorrhage gc checkpoints evaluations"],
    )
    made.add_argument("kinds", nargs="+", metavar="KIND", choices=list(KINDS), help=f"one of {', '.join(KINDS)}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Remove the outputs and print their paths."""
    arguments = parser().parse_args(argv)
    for path in collect_garbage(Family.read(), arguments.kinds):
        print(f"removed {path}")
    return YES
