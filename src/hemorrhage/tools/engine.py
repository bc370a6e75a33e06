"""Engines on this machine, each in an environment of its own: ``hemorrhage engine``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hemorrhage.engines import environment
from hemorrhage.engines.environment import InstallError
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.runtime.command import NO, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser

SEPARATE = [name for name, engine in ENGINES.items() if not engine.is_built_in]
"""Engines with an environment of their own."""

ACTIONS = ("install", "list", "remove")


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "engine",
        f"Install, list or remove engines that serve models: {', '.join(SEPARATE)}.\n"
        f"Each has an environment of its own in .engines, or in the folder that {environment.FOLDER_VARIABLE} names.\n"
        "An installation that was stopped is continued by the next.",
        ["hemorrhage engine install llama_cpp", "hemorrhage engine list", "hemorrhage engine remove llama_cpp"],
        {NO: "an engine could not be installed or removed"},
    )
    made.add_argument("action", choices=ACTIONS)
    made.add_argument("engines", nargs="*", metavar="ENGINE", help=f"any of {', '.join(SEPARATE)}")
    made.add_argument("--json", action="store_true", help="the list as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked with the engines that are named; ``list`` has them all."""
    arguments = parser().parse_args(argv)
    chosen = _chosen(arguments.action, arguments.engines)
    try:
        if arguments.action == "list":
            _list(chosen, as_json=arguments.json)
        for engine in chosen if arguments.action == "install" else ():
            print(f"installing {engine} into {environment.folder_of(engine)}", file=sys.stderr)
            environment.install(engine)
            print(f"{engine} is installed")
        for engine in chosen if arguments.action == "remove" else ():
            print(f"{engine.title} {'is removed' if environment.remove(engine) else 'was not installed'}")
    except InstallError as error:
        raise CommandError(str(error), NO) from error
    return YES


def _chosen(action: str, names: Sequence[str]) -> list[Engine]:
    allowed = list(ENGINES) if action == "list" else SEPARATE
    for name in names:
        if name not in ENGINES:
            raise CommandError(f"{name!r} is not an engine; one of {', '.join(allowed)}")
        if name not in allowed:
            raise CommandError(
                f"{name} is part of this bench, there is nothing to {action}; one of {', '.join(allowed)}"
            )
    if not names and action != "list":
        raise CommandError(f"name what to {action}: {', '.join(allowed)}")
    return [ENGINES[name] for name in names or ENGINES]


def _list(engines: Sequence[Engine], as_json: bool) -> None:
    known = [(engine, environment.is_installed(engine)) for engine in engines]
    if as_json:
        listed = [
            {"engine": engine.name, "version": engine.version, "reads": engine.reads, "installed": is_installed}
            for engine, is_installed in known
        ]
        print(json_text({"folder": str(environment.home()), "engines": listed}))
        return
    for engine, is_installed in known:
        state = "installed" if is_installed else f"not installed: hemorrhage engine install {engine.name}"
        state = "built in" if engine.is_built_in else state
        print(f"{engine.name:<12s} {engine!s:<20s} reads {engine.reads:<5s} {state}")
