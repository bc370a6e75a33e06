"""A page in its folder of reports: it appears whole, and provenance.json says at which address it was drawn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from hemorrhage.analyze.study import PROVENANCE
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import whole

PAGE = "index.html"


def write(reports: Path, html: str, address: str) -> None:
    """Write the page, and then its address into provenance.json: numbers that are made anew take it out again."""
    with whole(reports / PAGE) as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
    with whole(reports / PROVENANCE) as unfinished:
        text = json.dumps({**provenance, "page": address}, indent=2, allow_nan=False)
        unfinished.write_text(f"{text}\n", encoding="utf-8")


def run(module: str, draw: Callable[[Path, str], None]) -> None:
    """Run the command line of a step that draws a page: its folder of reports, and ``--address``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("reports", type=Path)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    step.start()
    draw(arguments.reports, arguments.address)
