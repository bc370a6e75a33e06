"""Step ``family_page``: the page of several models, drawn from what the step before left in the folder of reports.

python -m hemorrhage.analyze.family.page REPORTS --address A
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hemorrhage.analyze.family import results
from hemorrhage.analyze.family.page.render import render
from hemorrhage.analyze.study import PROVENANCE
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import whole


def draw(reports: Path, address: str) -> None:
    """Draw the page, and then say in provenance.json at which address."""
    html = render(results.read(reports))
    with whole(reports / "index.html") as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
    with whole(reports / PROVENANCE) as unfinished:
        unfinished.write_text(json.dumps({**provenance, "page": address}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.analyze.family.page")
    parser.add_argument("reports", type=Path)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    step.start()
    draw(arguments.reports, arguments.address)


if __name__ == "__main__":
    main()
