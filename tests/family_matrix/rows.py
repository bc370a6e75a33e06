"""Rows: every cell of a family, each made although another failed."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from hemorrhage.runtime.step import InputError
from tests.family_matrix.cells import Cell, refused, wrong
from tests.family_matrix.columns import COLUMNS
from tests.family_matrix.study import Study


def cell(study: Study, column: str) -> Cell:
    """What a step does with a family."""
    try:
        return COLUMNS[column](study)
    except InputError as error:
        return refused(str(error))
    except Exception as error:
        if "-v" in sys.argv:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return wrong(f"{reason} ({Path(where.filename).name}:{where.lineno})")


def row(name: str, columns: Iterable[str] = COLUMNS) -> dict[str, Cell]:
    """Column -> cell of a family."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(name, Path(folder))
        return {column: cell(study, column) for column in columns}


def timed(name: str, columns: Iterable[str]) -> tuple[dict[str, Cell], float]:
    """A row, made without log lines, and the seconds that it took."""
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    return row(name, columns), time.perf_counter() - start
