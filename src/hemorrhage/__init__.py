"""Hemorrhage bench: how a language model bleeds when it is altered or decoded differently.

The steps follow one another as the sub-packages calibrate, compress, evaluate, decode, analyze;
``docs/ARCHITECTURE.md`` is the map. ``hemorrhage.load("reports")`` is for notebooks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Threads that have nothing to do spin before they sleep: torch's and OpenBLAS's, which take turns, on the same cores.
# By default a calibration takes longer on two cores than on one. Both libraries read these when they are loaded.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def load(reports: str | os.PathLike[str] = "reports") -> pd.DataFrame:
    """Read the rows of a study as a tidy table: a row for each variant, metric, data set and protocol.

    ``reports``: the folder that a run leaves. ``docs/formats.md`` has the columns, and queries. params.yaml and the
    provenance are in ``attrs``. Raises FileNotFoundError where the study has no rows.
    """
    from pathlib import Path

    from hemorrhage.analyze.rows import tidy

    return tidy.load(Path(reports))
