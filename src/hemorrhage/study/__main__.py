"""What rules, dvc.yaml and `hemorrhage adopt` ask of the study in the current folder, with the code of that folder.

    python -m hemorrhage.study gc KIND...   remove what no plan names (DVC records the rest)
    python -m hemorrhage.study failed       which variants failed and why; exit code 1 where some did
    python -m hemorrhage.study addresses    where every output lies, as JSON

People have the command ``hemorrhage``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from hemorrhage.study import params as config
from hemorrhage.study.family import Family
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.outputs import advice, collect_garbage, list_failures


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.study")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("gc").add_argument("kinds", nargs="+", choices=list(KINDS))
    commands.add_parser("failed")
    commands.add_parser("addresses")
    arguments = parser.parse_args(argv)
    try:
        family = Family.read()
    except config.ConfigError as error:
        sys.exit(str(error))
    if arguments.command == "gc":
        for path in collect_garbage(family, arguments.kinds):
            print(f"removed {path}")
        return 0
    if arguments.command == "addresses":
        print(json.dumps(family.addresses(), indent=2))
        return 0
    reasons = list_failures(family)
    if reasons:
        print(advice(family, reasons), file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
