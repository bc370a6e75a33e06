"""Estimates by variant, and the headline: what is looked up is what the rows say."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.schema import Source, Statistic, row, table_of
from hemorrhage.analyze.rows.tables import Numbers, decoding_points, headline, round_digits

VARIANT = Variant("rtn-3", "rtn", "weight_quantization", "rtn", "", "3 bits", "bits", 3.0, 0, "base", {})
GREEDY = Variant("rtn-3", "decode", "decode", "greedy", "", "", "", math.nan, 0, "base", {})
SPREAD = Variant("rtn-3", "decode", "decode", ALL_STRATEGIES, "", "", "", math.nan, 0, "base", {})


@pytest.fixture
def numbers() -> Numbers:
    return Numbers(
        table_of(
            [
                row(VARIANT, "kl_mean[w1]", Statistic(0.123456789, 0.1, 0.2, 16), Source("prose", "w1")),
                row(VARIANT, "kl_mean[w1]", Statistic.failed("x"), Source("code", "w1")),
                row(VARIANT, "size_ratio", Statistic(0.25, n=1), Source()),
                row(GREEDY, "accuracy", Statistic(0.5, 0.4, 0.6, 20), Source("recall")),
                row(SPREAD, "spread", Statistic(0.1, n=20), Source("recall")),
            ]
        )
    )


def test_estimates_are_found_without_their_protocol(numbers: Numbers) -> None:
    estimate = numbers.get("rtn-3", "kl_mean", "prose")
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.123456789, 0.1, 0.2, 16)
    assert estimate.metric == "kl_mean[w1]"
    assert numbers.get("rtn-3", "kl_mean", "code") is None, "what failed is no estimate"
    assert numbers.get("rtn-3", "accuracy", "recall") is None, "decoding has a strategy"
    assert numbers.get("rtn-3", "accuracy", "recall", "greedy") is not None


def test_data_sets_and_strategies_of_a_metric(numbers: Numbers) -> None:
    assert numbers.datasets("kl_mean") == ["prose"]
    assert numbers.datasets("accuracy") == []
    assert numbers.datasets("accuracy", strategy=True) == ["recall"]
    assert numbers.strategies("accuracy") == ["greedy"]
    assert numbers.strategies("spread") == [], "all of them are no strategy"
    assert numbers.decoded_variants() == ["rtn-3"]


def test_the_headline_has_six_digits_and_names_the_protocol(numbers: Numbers) -> None:
    inputs = Inputs({}, {"base": VARIANT, "rtn-3": VARIANT}, {"rtn-3": Output({}, {})}, {}, {}, {}, {})
    content = headline(inputs, numbers, ["prose", "code"], [], 1, {"size": {}})
    assert content["variants"] == {
        "rtn-3": {"kl_mean[w1]": {"prose": 0.123457}, "size_ratio": 0.25, "decoding_spread[recall]": 0.1}
    }
    assert content["counts"] == {"variants": 1, "failed": 0, "inside_budget": 1}


def test_decoding_has_a_row_for_each_strategy(numbers: Numbers) -> None:
    points = decoding_points(numbers)
    assert points[["variant", "strategy", "accuracy", "low", "high"]].values.tolist() == [
        ["rtn-3", "greedy", 0.5, 0.4, 0.6]
    ]


@pytest.mark.parametrize(("value", "expected"), [(1234567.0, 1234570.0), (0.000123456789, 0.000123457), (0.0, 0.0)])
def test_six_significant_digits(value: float, expected: float) -> None:
    assert round_digits(value) == expected


def test_nothing_measured_gives_empty_tables() -> None:
    nothing = Numbers(pd.DataFrame(table_of([]), dtype=object))
    assert nothing.decoded_variants() == []
    assert len(decoding_points(nothing)) == 0
    assert np.isnan(round_digits(math.nan))
