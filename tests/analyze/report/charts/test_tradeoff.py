"""KL against size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hemorrhage.analyze.report.charts.scales import kl_coordinate
from hemorrhage.analyze.report.charts.tradeoff import tradeoff
from hemorrhage.analyze.verdicts.shipping import FrontPoint
from tests.analyze.report import examples
from tests.analyze.report.examples import numbers, row, variant

SMALL = FrontPoint("rtn-4", "weight_quantization", 300, 0.3, 0.3, "", 0.1, 0.05, 0.2, True, 0.9)
MASKED = FrontPoint("wanda-0.5", "unstructured_pruning", 1000, 1.0, 0.6, "zeros are stored", 0.2, 0.1, 0.3, False, 0.0)
INPUTS = examples.inputs(variant("rtn-4"), variant("wanda-0.5", axis="sparsity", severity=0.5))
NUMBERS = numbers(
    row("rtn-4", "kl_mean[p]", 0.1, 0.05, 0.2, dataset="prose"),
    row("wanda-0.5", "kl_mean[p]", 0.2, 0.1, 0.3, dataset="prose"),
)


def test_the_front_ends_at_the_base() -> None:
    line, *_ = tradeoff(INPUTS, NUMBERS, "prose", [SMALL, MASKED], {})["data"]
    assert line["x"] == [30.0, 100.0]
    assert line["y"] == [kl_coordinate(0.1), 0.0]


def test_a_gain_that_no_engine_uses_is_open_at_the_size_that_it_would_have() -> None:
    _, quantized, pruned, names = tradeoff(INPUTS, NUMBERS, "prose", [SMALL, MASKED], {})["data"]
    assert pruned["x"] == [60.0]
    assert pruned["marker"]["symbol"][0].endswith("-open")
    assert pruned["text"][0].endswith("in theory 60.0\u00a0%: zeros are stored")
    assert quantized["marker"]["size"] == [11]
    assert quantized["text"][0].endswith("30.0\u00a0% on disk, on the front in 90\u00a0% of the resamples")
    assert names["text"] == ["rtn-4\u00a0\u00a0\u00a0"]


def test_a_base_that_was_quantized_before_is_on_the_axis_of_sizes() -> None:
    base: Any = {**INPUTS.base, "quantized_before": {"type": "Q4_1", "bytes": 400}}
    *_, original = tradeoff(replace(INPUTS, base=base), NUMBERS, "prose", [SMALL], {})["data"]
    assert (original["x"], original["name"]) == ([40.0], "The base as Q4_1, without loss")


def test_a_corpus_without_kl_has_an_empty_chart() -> None:
    figure = tradeoff(INPUTS, NUMBERS, "code", [SMALL], {})
    assert figure["data"][0]["x"] == [100.0]


def test_the_budget_is_a_line() -> None:
    layout = tradeoff(INPUTS, NUMBERS, "prose", [SMALL], {"kl": 0.05})["layout"]
    assert [label["text"] for label in layout["annotations"]] == ["budget"]
    assert layout["shapes"][0]["y0"] == kl_coordinate(0.05)
