"""docs/engines.md is the table of engines."""

from __future__ import annotations

import pytest

from hemorrhage.models.engine_table import METHODS, PLAIN, TABLE
from hemorrhage.tools import engines
from tests.conftest import ROOT


def test_what_is_committed_is_what_is_generated() -> None:
    text = (ROOT / engines.FILE).read_text(encoding="utf-8")
    assert engines.page(text) == text, "run python -m hemorrhage.tools.engines"


def test_every_row_has_a_line() -> None:
    lines = engines.tables().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(TABLE) + len(METHODS) + 2 * (len(PLAIN) + 1)
    assert "| 4 bit integers by group of 128 | 8 bit floats by token dynamic | `pack-quantized` | 9.0 | yes |" in lines


def test_a_file_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="engines: begin"):
        engines.page("text")
