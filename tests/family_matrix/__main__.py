"""Make the table of families and print what is not right.

python -m tests.family_matrix [--write] [--columns NAME,...] [--jobs N] [--json FILE] [FAMILY...]

``--write`` puts the table into docs/families.md.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.families import FAMILIES
from tests.family_matrix.cells import RIGHT, Cell
from tests.family_matrix.columns import COLUMNS
from tests.family_matrix.page import PAGE, page
from tests.family_matrix.rows import timed


def read_cells(file: Path) -> dict[str, dict[str, Cell]]:
    """Family -> column -> cell of an earlier call."""
    stored = json.loads(file.read_text())
    return {
        name: {column: Cell(answer, tuple(reasons)) for column, (answer, reasons) in cells.items()}
        for name, cells in stored.items()
    }


def write_cells(found: dict[str, dict[str, Cell]], file: Path) -> None:
    """Keep cells for another call."""
    stored = {
        name: {column: (cell.answer, cell.reasons) for column, cell in cells.items()} for name, cells in found.items()
    }
    file.write_text(json.dumps(stored, indent=1))


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.family_matrix", description="families and steps")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="families at once; default: 2")
    parser.add_argument("--write", action="store_true", help="put the table into docs/families.md")
    parser.add_argument("--json", type=Path, help="a file of cells: those that are made are replaced, others kept")
    parser.add_argument("-v", action="store_true", help="tracebacks of what is wrong; with --jobs 1")
    arguments = parser.parse_args()
    columns, names = arguments.columns.split(","), arguments.names or list(FAMILIES)
    found = read_cells(arguments.json) if arguments.json and arguments.json.is_file() else {}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("forkserver")) as pool:
        # One at a time runs here, where its tracebacks are.
        made = (
            map(timed, names, [columns] * len(names))
            if arguments.jobs == 1
            else pool.map(timed, names, [columns] * len(names))
        )
        for name, (cells, seconds) in zip(names, made, strict=True):
            found[name] = found.get(name, {}) | cells
            bad = {column: cell for column, cell in cells.items() if cell != RIGHT}
            print(f"{name}: {len(cells) - len(bad)} right, {seconds:.0f} s", flush=True)
            for column, cell in bad.items():
                print(f"    {column}: {cell}", flush=True)
            if arguments.json:
                write_cells(found, arguments.json)
    if arguments.write:
        PAGE.write_text(page({name: found[name] for name in FAMILIES}), encoding="utf-8")
        # It reads the page that was just written.
        from tests.peer_coverage import renew

        renew()


if __name__ == "__main__":
    main()
