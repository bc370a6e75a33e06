"""Damage curves: positions, styles, thresholds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hemorrhage.analyze.curves.entries import Fit
from hemorrhage.analyze.report.charts.damage import Chart, curve_styles, damage, hover_text, on_axis
from hemorrhage.analyze.study import Study
from tests.analyze.report import examples
from tests.analyze.report.examples import entry, estimate, located, numbers, row, sweep, variant

RTN = [variant("rtn-8", severity=8.0), variant("rtn-4", severity=4.0), variant("rtn-2", severity=2.0)]
DAMAGES = {"rtn-8": 0.01, "rtn-4": 0.1, "rtn-2": 2.0}
NUMBERS = numbers(
    row("base", "ln_perplexity_ratio", 0.0, 0.0, 0.0, dataset="prose"),
    *(row(name, "ln_perplexity_ratio", x, 0.9 * x, 1.1 * x, dataset="prose") for name, x in DAMAGES.items()),
)
CHART = Chart(examples.inputs(*RTN), NUMBERS, "factor", "prose")


def test_shares_are_shown_in_per_cent() -> None:
    assert on_axis(0.5, "sparsity") == 50.0
    assert on_axis(4.0, "bits") == 4.0
    assert on_axis(50.0, "steps") == 50.0


def test_a_curve_starts_at_the_base_and_goes_towards_more_damage() -> None:
    band, line, markers = damage(CHART, [sweep(*RTN)], [])["data"]
    assert band["fill"] == "toself"
    assert line["x"] == [16.0, 8.0, 4.0, 2.0]
    assert line["y"] == [0.0, 0.01, 0.1, 2.0]
    assert markers["x"] == [8.0, 4.0, 2.0], "the base has no marker"
    assert markers["error_y"]["array"] == pytest.approx([0.001, 0.01, 0.2])


def test_the_budget_is_a_line_that_the_axis_reaches() -> None:
    layout = damage(replace(CHART, budget={"perplexity": 20.0}), [sweep(*RTN)], [])["layout"]
    assert layout["annotations"][-1]["text"] == "budget"
    assert layout["shapes"][-1]["y0"] == math.log(20)
    assert layout["yaxis"]["range"][1] > math.log(20)


def test_fewer_bits_are_further_right() -> None:
    layout = damage(CHART, [sweep(*RTN)], [])["layout"]
    start, end = layout["xaxis"]["range"]
    assert start > math.log10(16) > math.log10(2) > end
    assert [label["text"] for label in layout["annotations"]] == ["doubled"], "10 % coincide with the base here"


def test_knee_and_doubling_point_are_marked_with_their_intervals() -> None:
    curve = entry(
        thresholds={"knee": located(4.0, 3.0, None), "two_fold": located(3.0, 2.5, 3.5)},
        fits={"ln_perplexity_ratio": Fit("two_segments", {}, [16.0, 4.0, 2.0], [0.0, 0.2, 2.0])},
    )
    traces = damage(CHART, [sweep(*RTN)], [curve, entry("another")])["data"]
    marks = [trace for trace in traces if "error_x" in trace]
    assert [mark["text"] for mark in marks] == [
        ["rtn: knee at 4 bits (3 to 4)"],
        ["rtn: perplexity doubles at 3 bits (2.5 to 3.5)"],
    ]
    assert [mark["y"] for mark in marks] == [[0.2], [math.log(2)]]
    assert sum(trace.get("line", {}).get("dash") == "dot" for trace in traces) == 1


def test_a_curve_on_another_variant_has_no_shape() -> None:
    curve = entry(on="wanda-0.5", fits={"ln_perplexity_ratio": Fit("two_segments", {}, [16.0, 2.0], [0.0, 2.0])})
    traces = damage(CHART, [sweep(*RTN)], [curve])["data"]
    assert not any(trace.get("line", {}).get("dash") == "dot" for trace in traces)


def test_single_points_are_a_dot_chart() -> None:
    figure = damage(CHART, [sweep(RTN[1]), sweep(RTN[2], name="rtn other")], [])
    (trace,) = figure["data"]
    assert trace["y"] == ["rtn<br>label of rtn-4", "rtn other<br>label of rtn-2"]
    assert trace["x"] == [0.1, 2.0]
    assert [label["text"] for label in figure["layout"]["annotations"]] == ["base", "doubled"]


def test_curves_of_a_sweep_share_its_colour() -> None:
    styles = curve_styles([sweep(RTN[0]), sweep(RTN[1], name="rtn symmetric"), sweep(variant("gptq-4"))])
    assert styles["rtn"].colour == styles["rtn symmetric"].colour != styles["gptq"].colour
    assert styles["rtn symmetric"].symbol == f"{styles['rtn'].symbol}-open"
    assert styles["rtn symmetric"].dash != styles["rtn"].dash == styles["gptq"].dash


def test_a_point_says_its_size() -> None:
    text = hover_text(RTN[1], "kl", estimate(0.5, 0.4, 0.6))
    assert text == (
        "<b>rtn-4</b><br>label of rtn-4<br>KL to the base (nats per token): 0.5 (0.4 to 0.6)"
        "<br>4.00 effective bits, 25\u00a0% of the base's stored bits"
    )


def test_knees_of_a_whole_study_are_drawn(study: Study) -> None:
    from hemorrhage.analyze.axes import sweeps

    depth = [each for each in sweeps(study.inputs) if each.family == "depth_pruning"]
    chart = Chart(study.inputs, study.numbers, "factor", "prose")
    bent = [replace(each, thresholds={**each.thresholds, "knee": located(0.25)}) for each in study.thresholds]
    diamonds = [
        trace for trace in damage(chart, depth, bent)["data"] if trace.get("marker", {}).get("symbol") == "diamond-open"
    ]
    assert [round(trace["x"][0]) for trace in diamonds] == [25, 25]
