"""Rows and their schema: what a row says, and what is refused."""

from __future__ import annotations

import math

import pandera.errors
import pytest

from hemorrhage.analyze.inputs import Variant
from hemorrhage.analyze.rows.schema import ROWS, Row, Source, Statistic, environment_id, row, table_of

VARIANT = Variant("rtn-3", "rtn", "weight_quantization", "rtn", "", "3 bits", "bits", 3.0, None, "base", {})
SOURCE = Source("prose", "w1", "ab", "cd")


def test_a_row_says_variant_statistic_and_source() -> None:
    made = row(VARIANT, "kl_mean", Statistic(0.2, 0.1, 0.3, 16, p=0.01), SOURCE)
    assert (made.variant, made.setting, made.severity, made.seed) == ("rtn-3", "3 bits", 3.0, None)
    assert (made.estimate, made.low, made.high, made.n, made.p) == (0.2, 0.1, 0.3, 16, 0.01)
    assert (made.dataset, made.protocol, made.data, made.environment) == ("prose", "w1", "ab", "cd")
    assert math.isnan(made.q)
    assert (made.status, made.reason) == ("ok", "")


def test_a_table_of_rows_follows_the_schema() -> None:
    rows = [
        row(VARIANT, "kl_mean", Statistic(0.2, n=16), SOURCE),
        row(VARIANT, "same_top1", Statistic.failed("out of memory"), SOURCE),
        row(VARIANT, "perplexity", Statistic.undefined("not a finite number", 16), SOURCE),
    ]
    table = ROWS.validate(table_of(rows))
    assert list(table.columns) == list(Row._fields) == list(ROWS.columns)
    assert table["status"].tolist() == ["ok", "failed", "undefined"]
    assert table["reason"].tolist() == ["", "out of memory", "not a finite number"]


@pytest.mark.parametrize(
    ("statistic", "why"),
    [
        (Statistic(), "no finite estimate"),
        (Statistic(0.1, reason="because"), "a reason exactly when"),
        (Statistic(0.1, low=0.3, high=0.2), "low end lies above"),
    ],
)
def test_rows_that_say_nothing_are_refused(statistic: Statistic, why: str) -> None:
    with pytest.raises(pandera.errors.SchemaError, match=why):
        ROWS.validate(table_of([row(VARIANT, "kl_mean", statistic, SOURCE)]))


def test_a_statistic_without_its_test_keeps_the_rest() -> None:
    untested = Statistic(0.1, 0.0, 0.2, 8, p=0.5, mde=0.1).untested()
    assert (untested.estimate, untested.low, untested.high, untested.n) == (0.1, 0.0, 0.2, 8)
    assert math.isnan(untested.p)
    assert math.isnan(untested.mde)


def test_the_environment_of_a_manifest() -> None:
    assert environment_id({"environment": {"id": "ab"}}) == "ab"
    assert environment_id({}) == ""
