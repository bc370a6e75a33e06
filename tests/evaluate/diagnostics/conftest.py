"""Fixtures of this folder's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import Tensor

from hemorrhage.evaluate.diagnostics.collect import base_side, measure
from hemorrhage.models.checkpoint import load
from tests.evaluate.diagnostics.literal import drawn, noisy


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return drawn(500)


@pytest.fixture(scope="module")
def of_base(tiny: Path, windows: Tensor) -> dict[str, Tensor]:
    return base_side(load(tiny), windows)


@pytest.fixture(scope="module")
def damaged(tiny: Path) -> Any:
    return noisy(tiny, 0.3)


@pytest.fixture(scope="module")
def table(damaged: Any, of_base: dict[str, Tensor]) -> pd.DataFrame:
    return measure(damaged, of_base, None, ablate=True)
