"""What judgements keep on this machine: ``hemorrhage cache``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hemorrhage.judge import cache
from hemorrhage.runtime.command import YES, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser

DAY = 86400


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "cache",
        "Show what `hemorrhage judge` keeps: bases, references and evaluations, the one used longest ago first.",
        ["hemorrhage cache", "hemorrhage cache --limit 5", "hemorrhage cache --clear"],
    )
    home = cache.default_folder()
    made.add_argument("--cache", type=Path, default=home, metavar="FOLDER", help=f"default: {home}")
    made.add_argument(
        "--limit", type=cache.size_gb, metavar="GB", help="remove what was used longest ago until the rest fits"
    )
    made.add_argument("--clear", action="store_true", help="remove everything")
    made.add_argument("--json", action="store_true", help="the outputs with their bytes, as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the cache holds, after making room where that was asked for."""
    arguments = parser().parse_args(argv)
    with cache.locked(arguments.cache):
        said = sys.stderr if arguments.json else sys.stdout
        if arguments.clear:
            print(f"{cache.clear(arguments.cache) / 1e6:,.1f} MB removed", file=said)
            if not arguments.json:
                return YES
        elif arguments.limit is not None:
            removed = cache.trim(arguments.cache, arguments.limit)
            freed = sum(entry.bytes for entry in removed)
            print(f"{freed / 1e6:,.1f} MB removed in {len(removed)} outputs", file=said)
        known = cache.entries(arguments.cache)
    total = sum(entry.bytes for entry in known)
    if arguments.json:
        outputs = [{"output": _name(entry), "bytes": entry.bytes, "used": entry.used} for entry in known]
        print(json_text({"folder": str(arguments.cache), "bytes": total, "outputs": outputs}))
        return YES
    for entry in known:
        days = (time.time() - entry.used) / DAY
        print(f"{entry.bytes / 1e6:10,.1f} MB  {days:5.1f} days ago  {_name(entry)}")
    print(f"{total / 1e6:10,.1f} MB in {len(known)} outputs of {arguments.cache}")
    return YES


def _name(entry: cache.Entry) -> str:
    return "/".join(entry.folder.parts[-3:])
