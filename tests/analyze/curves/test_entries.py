"""Entries of thresholds.json: what is written of a threshold, and what becomes of it on the axis."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from hemorrhage.analyze.curves import entries
from hemorrhage.analyze.curves.defects import COPIED, Defect
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, Fit, NextPoints, Threshold
from hemorrhage.analyze.stored import decode, encode
from tests.analyze.curves.made import entry, located


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (Threshold(TOO_FEW, "1 measured point"), {"answer": TOO_FEW, "reason": "1 measured point"}),
        (
            Threshold(NO_CLIFF, most=0.3, resamples_reaching=0.0),
            {"answer": NO_CLIFF, "most": 0.3, "resamples_reaching": 0.0},
        ),
        (
            Threshold(
                LOCATED, estimate=0.5, low=0.4, between=(0.3, 0.6), shape="two_segments", gain=9.0, p_smooth=0.01
            ),
            {
                "answer": "found",
                "estimate": 0.5,
                "low": 0.4,
                "high": None,
                "between": [0.3, 0.6],
                "shape": "two_segments",
                "gain": 9.0,
                "p_smooth": 0.01,
            },
        ),
        (Threshold(NO_CLIFF, "a line", gain=0.0), {"answer": NO_CLIFF, "reason": "a line", "gain": 0.0}),
    ],
)
def test_only_what_is_known_of_a_threshold_is_written(threshold: Threshold, expected: dict[str, object]) -> None:
    assert threshold.as_json() == expected
    assert json.loads(json.dumps(threshold.as_json(), allow_nan=False)) == expected


def test_low_and_high_change_sides_where_the_axis_runs_backwards() -> None:
    bits = located(12.0, 11.0, 13.0, between=(10.0, 14.0)).on_axis(16.0, -1.0)
    assert (bits.estimate, bits.low, bits.high, bits.between) == (4.0, 3.0, 5.0, (2.0, 6.0))
    share = located(0.5, None, 0.6, between=(0.4, 0.6)).on_axis(0.0, 1.0)
    assert (share.estimate, share.low, share.high, share.between) == (0.5, None, 0.6, (0.4, 0.6))
    open_end = located(12.0, 11.0, None).on_axis(16.0, -1.0)
    assert (open_end.low, open_end.high) == (None, 5.0)
    assert math.isnan(Threshold(NO_CLIFF).on_axis(16.0, -1.0).estimate)


def test_a_fit_is_moved_and_keeps_its_damage() -> None:
    fit = Fit("linear", {"linear": 1.5}, [0.0, 8.0], [0.0, 2.0]).on_axis(16.0, -1.0)
    assert fit.as_json() == {"shape": "linear", "bic": {"linear": 1.5}, "x": [16.0, 8.0], "y": [0.0, 2.0]}


def test_next_points_name_a_setting_only_with_values() -> None:
    assert NextPoints((3,), "why", "bits").as_json() == {"values": [3], "reason": "why", "setting": "bits"}
    assert NextPoints((), "a control").as_json() == {"values": [], "reason": "a control"}


def test_thresholds_are_written_next_to_the_keys_of_the_curve() -> None:
    made = entry({"knee": located(8.0)}, defects=[Defect(COPIED, "rtn", ("a", "b"), "both 1")], missing={"c": "failed"})
    content = entries.as_json([made], {"knee": "where it bends"})
    assert content["definitions"] == {"knee": "where it bends"}
    (curve,) = json.loads(json.dumps(content["curves"], allow_nan=False))
    assert curve["knee"] == {"answer": LOCATED, "estimate": 8.0, "low": None, "high": None}
    assert curve["two_fold"]["answer"] == NO_CLIFF
    assert curve["defects"] == [{"rule": COPIED, "cells": ["a", "b"], "evidence": "both 1"}]
    assert (curve["next"], curve["missing"], curve["base"]) == (None, {"c": "failed"}, 16.0)


def test_the_table_has_a_row_for_each_located_threshold() -> None:
    table = entries.threshold_points([entry({"knee": located(1 / 3, None, 0.5), "two_fold": located(0.25, 0.2, 0.3)})])
    assert list(table.columns) == ["curve", "corpus", "axis", "definition", "estimate", "low", "high"]
    rows = table.set_index("definition")
    assert set(rows.index) == {"knee", "two_fold"}
    assert rows.loc["knee", "estimate"] == 0.333333
    assert math.isnan(rows.loc["knee", "low"])
    assert entries.threshold_points([entry()]).empty


def test_curves_of_a_corpus_have_or_should_have_two_points() -> None:
    one = entry(points=1)
    failed = replace(one, name="failed", missing={"rtn-4": "MemoryError"})
    other = replace(entry(), name="code", corpus="code")
    assert entries.curves_of([one, failed, other], "prose") == [failed]


def test_an_entry_is_the_same_after_it_was_stored() -> None:
    made = entry({"knee": located(8.0, between=(7.0, 9.0))}, next=NextPoints((3, 0.5), "why", "bits"))
    again = decode(entries.CurveEntry, json.loads(json.dumps(encode(made))))
    assert again.as_json() == made.as_json()
    assert again.thresholds["knee"] == made.thresholds["knee"]
