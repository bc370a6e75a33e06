"""Planned outputs and their status: ``hemorrhage plan``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from hemorrhage.runtime.command import YES, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.family import Family
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.overlaps import overlap_warnings
from hemorrhage.study.plan import Plan


class Output(TypedDict):
    """An output of the plan: its folder, and whether it exists."""

    name: str
    path: str
    done: bool


class Content(TypedDict):
    """The content of ``--json``: the outputs of each kind, and whether the report is current."""

    outputs: dict[str, list[Output]]
    report_is_current: bool


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "plan",
        "List the outputs that params.yaml asks for, kind by kind, and how many of them are done.",
        ["hemorrhage plan", "hemorrhage plan --json"],
    )
    made.add_argument("--json", action="store_true", help="every output with its path, as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan."""
    arguments = parser().parse_args(argv)
    family = Family.read()
    plans = list(family.plans.values())
    for line in overlap_warnings(plans[0].params):
        print(f"warning: {line}", file=sys.stderr)
    if family.is_one:
        print(json_text(as_json(plans[0])) if arguments.json else as_text(plans[0]))
    elif arguments.json:
        print(json_text({"models": {name: as_json(plan) for name, plan in family.plans.items()}}))
    else:
        print(of_several(family))
    return YES


def of_several(family: Family) -> str:
    """Write a line for each kind of output of all models, and one for the report of all."""
    made: dict[str, dict[Path, bool]] = {kind: {} for kind in KINDS}
    for plan in family.plans.values():
        for kind, named in outputs(plan).items():
            made[kind] |= {manifest: manifest.is_file() for manifest in named.values()}
    lines = [f"{kind:24s} {sum(done.values()):4d}/{len(done)} done" for kind, done in made.items()]
    current = sum(plan.report_is_current() for plan in family.plans.values())
    lines.append(f"{'pages of models':24s} {current:4d}/{len(family.plans)} current")
    return "\n".join([*lines, f"{'page':24s} {'current' if family.report_is_current() else 'to be made'}"])


def outputs(plan: Plan) -> dict[str, dict[str, Path]]:
    """Map kind -> name -> the manifest of an output, in the order in which kinds are made."""
    return {kind: {name: Path(plan.manifest(kind, name)) for name in plan.names(kind)} for kind in KINDS}


def as_text(plan: Plan) -> str:
    """Write a line for each kind of output, and one for the report."""
    lines = [
        f"{kind:24s} {sum(manifest.is_file() for manifest in named.values()):4d}/{len(named)} done"
        for kind, named in outputs(plan).items()
    ]
    if plan.is_open:
        allowance = plan.params.screen.allowance
        lines.append(f"{'variants':24s} at most {allowance} are added after the screening, where the budget falls")
    states = {"rows": plan.rows_are_current(), "page": plan.report_is_current()}
    return "\n".join(
        [*lines, *(f"{name:24s} {'current' if current else 'to be made'}" for name, current in states.items())]
    )


def as_json(plan: Plan) -> Content:
    """Return the plan as plain content."""
    return {
        "outputs": {
            kind: [
                {"name": name, "path": str(manifest.parent), "done": manifest.is_file()}
                for name, manifest in named.items()
            ]
            for kind, named in outputs(plan).items()
        },
        "report_is_current": plan.report_is_current(),
    }
