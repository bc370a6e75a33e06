"""Strips of columns by a kernel, in Triton's interpreter, against the sweep column by column."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from hemorrhage.compress.solvers import strip
from hemorrhage.compress.solvers.strip import RowFormat, Strips
from tests.compress.solvers.interpreted import CASES
from tests.conftest import ROOT

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def agreement() -> dict[str, float]:
    """Of each case the share of stored numbers that are the same."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HEMORRHAGE_DEVICE": "cpu"}
    command = [sys.executable, "-m", "tests.compress.solvers.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shares: dict[str, float] = json.loads(done.stdout)
    return shares


@pytest.mark.parametrize("case", [*CASES, "of float16"])
def test_strips_store_what_columns_do(case: str, agreement: dict[str, float]) -> None:
    # Products between strips of another width are sums in another order, which a near tie may show.
    assert agreement[case] > 0.999


def test_the_kernel_fits_scales_where_groups_are_whole_in_a_strip_and_rows_their_own() -> None:
    def fits(width: int, *formats: RowFormat) -> bool:
        shape = torch.Size((1, 512, 4 * len(formats)))
        return Strips([(each, 4) for each in formats], width, shape, torch.bfloat16, torch.device("cpu")).fits

    integers, nvfp4 = RowFormat.integers(4, symmetric=False), RowFormat.e2m1(strip.SCALED)
    assert fits(128, integers)
    assert fits(16, integers, nvfp4)
    assert not fits(256, integers)
    assert not fits(24, integers)
    assert not fits(128, integers, RowFormat.e4m3(strip.GIVEN))


def test_a_processor_goes_column_by_column() -> None:
    assert not strip.is_available(torch.device("cpu"))
    assert strip.is_available(torch.device("cuda")) == (torch.version.hip is None)
