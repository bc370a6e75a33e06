"""A variant's outputs removed, so that the next run makes them again: ``hemorrhage invalidate``."""

from __future__ import annotations

from collections.abc import Sequence

from hemorrhage.runtime.command import YES, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.family import Family
from hemorrhage.study.outputs import invalidate


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "invalidate",
        "Remove a variant's checkpoint, evaluations and decodes. The next run makes them again.",
        ["hemorrhage invalidate gptq-3 && snakemake"],
    )
    made.add_argument(
        "variants",
        nargs="+",
        metavar="VARIANT",
        help="a variant, base, or the name of a server; MODEL/VARIANT where a study has several models",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Remove the outputs and print their paths."""
    arguments = parser().parse_args(argv)
    removed = invalidate(Family.read(), arguments.variants)
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print("nothing to remove: no output of these variants is in data/")
    return YES
