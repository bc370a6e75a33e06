"""Step ``page``: the page that people read, drawn from what the analysis left in the folder of reports.

    python -m hemorrhage.analyze.report REPORTS --address A

Writes index.html, and then its address into provenance.json: numbers that are made anew take it out again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hemorrhage.analyze import study
from hemorrhage.analyze.report.page import render
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import whole

PAGE = "index.html"


def draw(reports: Path, address: str) -> None:
    """Draw the page of a folder of reports."""
    analyzed = study.read(reports)
    html = render(analyzed)
    with whole(reports / PAGE) as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    provenance = json.dumps({**analyzed.provenance, "page": address}, indent=2, allow_nan=False) + "\n"
    with whole(reports / study.PROVENANCE) as unfinished:
        unfinished.write_text(provenance, encoding="utf-8")


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.analyze.report")
    parser.add_argument("reports", type=Path)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    step.start()
    draw(arguments.reports, arguments.address)


if __name__ == "__main__":
    main()
