"""Charts of the decoding sweep."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hemorrhage.analyze.report.charts import decoding
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.survival import Survival
from tests.analyze.report.examples import numbers, row

TEXTS = {"dataset": "recall", "family": "decode"}
NUMBERS = numbers(
    row("base", "accuracy", 0.5, 0.4, 0.6, **TEXTS, method="greedy"),
    row("base", "accuracy", 0.25, math.nan, math.nan, **TEXTS, method="top_p"),
    row("rtn-2", "accuracy", 0.1, 0.0, 0.2, **TEXTS, method="greedy"),
    row("rtn-2", "accuracy_interaction", -0.2, -0.3, -0.1, **TEXTS, method="greedy", p=0.01, q=0.04),
)


def test_a_strategy_is_a_row_and_a_variant_a_colour() -> None:
    figure = decoding.dots(NUMBERS, "accuracy", "recall")
    base, altered = figure["data"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["greedy", "top_p"]
    assert base["x"] == [50.0, 25.0]
    assert base["error_x"]["array"] == [pytest.approx(10.0), None]
    assert [round(y) for y in base["y"]] == [0, 1]
    assert altered["text"] == ["<b>rtn-2</b>, greedy<br>10 (0 to 20), 16 texts"]
    assert len(figure["layout"]["shapes"]) == 1


def test_strategies_by_variants() -> None:
    (trace,) = decoding.strategy_map(NUMBERS, "accuracy", "recall")["data"]
    assert (trace["x"], trace["y"]) == (["base", "rtn-2"], ["greedy", "top_p"])
    assert trace["z"] == [[0.5, 0.1], [0.25, None]]
    assert trace["text"][0] == ["50", "10"]


def test_interactions_are_signed_and_say_their_test() -> None:
    (trace,) = decoding.interactions(NUMBERS, "accuracy", "recall")["data"]
    assert trace["x"] == ["rtn-2"]
    assert (trace["zmin"], trace["zmax"]) == (-0.2, 0.2)
    assert trace["hovertext"][0][0].endswith("-20 (-30 to -10), p 0.01, q 0.04")


def test_survival_is_drawn_in_steps_with_a_band_where_it_is_known() -> None:
    curve = Survival(
        at=np.array([0, 1, 2]),
        share=np.array([1.0, 0.5, 0.25]),
        low=np.array([math.nan, 0.3, 0.1]),
        high=np.array([math.nan, 0.7, 0.4]),
        mean=0.75,
        mean_low=0.5,
        mean_high=1.0,
        texts=4,
        differing=3,
    )
    figure = decoding.survival_curves({"rtn-2": curve})
    low, high, line = figure["data"]
    assert (low["x"], low["y"], high["y"]) == ([1, 2], [30.0, 10.0], [70.0, 40.0])
    assert high["fill"] == "tonexty"
    assert line["y"] == [100.0, 50.0, 25.0]
    assert line["line"]["shape"] == "hv"
    assert figure["layout"]["xaxis"]["dtick"] == 1, "tokens are whole"
    assert decoding.survival_curves({})["data"] == []


def test_every_metric_has_a_name_and_a_unit() -> None:
    for metric in decoding.METRICS.values():
        assert metric.name
        assert (metric.times == 100) == metric.title.endswith("(%)")


def test_quality_against_the_cost_of_an_answer() -> None:
    measured = numbers(
        row("base", "accuracy", 0.5, 0.4, 0.6, **TEXTS, method="greedy"),
        row("rtn-2", "accuracy", 0.1, 0.0, 0.2, **TEXTS, method="greedy"),
        row("rtn-2", "bytes_ratio", 0.4, 0.3, 0.6, **TEXTS, method=ALL_STRATEGIES),
        row("rtn-3", "accuracy", 0.3, 0.2, 0.4, **TEXTS, method="greedy"),
    )
    base, altered = decoding.answer_costs(measured, "accuracy", "recall", "greedy")["data"]
    assert (base["name"], base["x"], base["y"]) == ("base", [1.0], [50.0])
    assert (altered["name"], altered["x"], altered["y"]) == ("rtn-2", [0.4], [10.0])
    assert altered["error_x"]["array"] == [pytest.approx(0.2)]
    assert altered["text"] == ["<b>rtn-2</b><br>10 (0 to 20) at 0.40 (0.30 to 0.60) times the bytes"]
