"""Step ``page``: the page that people read, drawn from what the analysis left in the folder of reports.

python -m hemorrhage.analyze.report REPORTS --address A
"""

from __future__ import annotations

from pathlib import Path

from hemorrhage.analyze import study, unmade
from hemorrhage.analyze.report.page import render, render_gap
from hemorrhage.analyze.report.write import run, write


def draw(reports: Path, address: str) -> None:
    """Draw the page of a folder of reports."""
    reason = unmade.reason(reports)
    html = render(study.read(reports)) if reason is None else render_gap(reports.name, reason)
    write(reports, html, address)


def main() -> None:
    """Run the command line; see the module's docstring."""
    run("hemorrhage.analyze.report", draw)


if __name__ == "__main__":
    main()
