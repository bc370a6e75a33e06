"""Step ``family_page``: the page of several models, drawn from what the step before left in the folder of reports.

python -m hemorrhage.analyze.family.page REPORTS --address A
"""

from __future__ import annotations

from pathlib import Path

from hemorrhage.analyze.family import results
from hemorrhage.analyze.family.page.render import render
from hemorrhage.analyze.report.write import run, write


def draw(reports: Path, address: str) -> None:
    """Draw the page of a folder of reports."""
    write(reports, render(results.read(reports)), address)


def main() -> None:
    """Run the command line; see the module's docstring."""
    run("hemorrhage.analyze.family.page", draw)


if __name__ == "__main__":
    main()
