"""A variant's chart over many studies."""

from __future__ import annotations

import math

from hemorrhage.analyze.report.charts.multiples import Place, Point, panel
from hemorrhage.analyze.report.charts.scales import kl_coordinate
from hemorrhage.tools.multiples import Measure

NAN = math.nan


def test_a_group_is_a_line_through_its_studies_in_the_order_of_the_axis() -> None:
    places = [
        Place("b", 4.0, "4", "x"),
        Place("a", 2.0, "2", "x"),
        Place("c", 2.0, "2", "y"),
        Place("d", 8.0, "8", "y"),
    ]
    points = [
        Point(0.5, 0.4, 0.7, 0.0, 0.0, 0.0, False),
        Point(1.0, NAN, NAN, 0.5, NAN, NAN, True),
        Point(2.0, 1.0, 3.0, 1.5, 1.0, 2.0, True),
        None,
    ]
    figure = panel("bits", places, points, Measure("m0", "accuracy", "recall", "accuracy on recall"))
    x, y = figure["data"]
    assert x["x"] == [2.0, 4.0]
    assert x["y"] == [1.0, 0.5]
    assert x["error_y"]["array"] == [None, 0.7 - 0.5]
    assert x["text"][0] == "<b>a</b><br>accuracy on recall: 1<br>from the first: +0.5"
    assert y["text"] == ["<b>c</b><br>accuracy on recall: 2 (1 to 3)<br>from the first: +1.5 (+1 to +2)"]
    assert figure["layout"]["xaxis"]["ticktext"] == ["4", "2", "8"]


def test_a_divergence_has_the_axis_of_the_page() -> None:
    figure = panel("revision", [Place("a", 0.0, "a", "")], [Point(0.5, 0.4, 0.7, NAN, NAN, NAN, False)],
                   Measure("m0", "kl_mean", "prose", "KL"))  # fmt: skip
    assert figure["data"][0]["y"] == [kl_coordinate(0.5)]
    assert "tickvals" in figure["layout"]["yaxis"]
