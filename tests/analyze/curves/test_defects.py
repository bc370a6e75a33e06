"""Defects of the study's published tables, and of made-up curves."""

from __future__ import annotations

import numpy as np

from hemorrhage.analyze.curves import defects
from hemorrhage.analyze.curves.defects import BELOW_BASE, COPIED, MIXED, NOT_A_NUMBER, NOT_MONOTONE, Row, published
from tests.analyze.curves.test_golden_thresholds_step import CURVES, TENTHS

PATTERNED = [*TENTHS, np.nan, np.nan]
CELLS = [*(f"{100 * one:g} %" for one in TENTHS), "2:4", "4:8"]


def rules(row: Row) -> set[tuple[str, tuple[str, ...]]]:
    return {(found.rule, found.cells) for found in defects.defects(row)}


def test_copied_cells_are_refused() -> None:
    admm = published("ADMM", PATTERNED, CELLS, [*CURVES["ADMM"][1], 7.5892, 7.5892], 4, 5.12)
    assert rules(admm) == {(COPIED, ("2:4", "4:8"))}
    assert defects.refused(admm) == {"2:4", "4:8"}
    # SparseGPT calibrated on PTB: 50 % and 60 % are its 4:8 and 2:4.
    values, cells = [7.5999, 9.7025, 29.0, 9.7025, 7.5999], ["50 %", "60 %", "70 %", "2:4", "4:8"]
    sparsegpt = published("SparseGPT", [0.5, 0.6, 0.7, np.nan, np.nan], cells, values, 4, 5.12)
    assert defects.refused(sparsegpt) == {"50 %", "60 %", "2:4", "4:8"}


def test_values_near_the_base_may_be_equal() -> None:
    row = published("GPTQ", [8.0, 10.0, 12.0], ["8", "6", "4"], [5.48, 5.48, 5.75], 2, 5.47)
    assert rules(row) == set()


def test_not_a_number_is_refused() -> None:
    magnitude = published("magnitude", TENTHS, CELLS[:8], [5.17, 5.33, 5.79, 7.31, 14.90, 3676, 52423, np.nan], 2, 5.12)
    assert rules(magnitude) == {(NOT_A_NUMBER, ("80 %",))}
    assert defects.refused(magnitude) == {"80 %"}


def test_a_cell_that_breaks_the_order_is_flagged() -> None:
    owl = published("Wanda-OWL", TENTHS, CELLS[:8], CURVES["Wanda-OWL"][1], 2, 5.47)
    assert rules(owl) == {(NOT_MONOTONE, ("30 %", "40 %"))}
    assert defects.refused(owl) == set()


def test_values_below_the_unaltered_model_are_flagged() -> None:
    tuned = published("SliceGPT tuned", TENTHS[:2], CELLS[:2], [5.461, 6.06], 3, 5.47)
    assert rules(tuned) == {(BELOW_BASE, ("10 %",))}
    gguf = published("GGUF", [8.0], ["8 bit"], [5.3976], 4, 5.47)
    assert rules(gguf) == {(BELOW_BASE, ("8 bit",))}


def test_rows_of_different_protocols_are_told_apart() -> None:
    pruned = [name for name in CURVES if name in ("Wanda", "SparseGPT", "ADMM", "RIA")]
    rows = [published(name, CURVES[name][0], CELLS[:8], CURVES[name][1], 2, CURVES[name][2]) for name in pruned]
    rows.append(published("magnitude", TENTHS[:7], CELLS[:7], [5.17, 5.33, 5.79, 7.31, 14.90, 3676, 52423], 2, 5.12))
    assert {(found.rule, found.row) for found in defects.mixed_protocols(rows)} == {(MIXED, "RIA")}
    structured = ["LLM-Pruner", "LLM-Pruner tuned", "FLAP", "SLEB", "SliceGPT", "SliceGPT tuned"]
    rows = [published(name, CURVES[name][0], CELLS, CURVES[name][1], 2, CURVES[name][2]) for name in structured]
    assert {found.row for found in defects.mixed_protocols(rows)} == {"LLM-Pruner", "FLAP"}
    assert defects.mixed_protocols([]) == []


def test_our_own_points_are_read_by_the_same_rules() -> None:
    rng = np.random.default_rng(0)
    ratios = np.array([0.01, 0.4, 0.2, 0.2, 3.0])
    shared = rng.normal(0, 0.3, (500, 1)) + rng.normal(0, 0.01, (500, 5))
    found = defects.of_curve("wanda", np.arange(1, 6) / 10, [f"wanda-{n}" for n in range(5)], ratios, ratios + shared)
    assert {(defect.rule, defect.cells) for defect in found} == {
        (NOT_MONOTONE, ("wanda-1", "wanda-2")),
        (COPIED, ("wanda-2", "wanda-3")),
    }
