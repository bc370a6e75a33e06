"""Two studies side by side."""

from __future__ import annotations

from hemorrhage.analyze.report.charts.comparison import side_by_side
from hemorrhage.analyze.report.charts.scales import kl_coordinate
from tests.analyze.report.examples import numbers, row


def test_a_variant_is_a_row_with_a_point_of_each_study() -> None:
    before = numbers(row("rtn-4", "kl_mean[p]", 0.1, 0.05, 0.2, dataset="prose"))
    after = numbers(
        row("rtn-4", "kl_mean[p]", 0.3, 0.2, 0.4, dataset="prose"),
        row("rtn-3", "kl_mean[p]", 1.0, 0.5, 2.0, dataset="prose"),
    )
    figure = side_by_side(["rtn-4", "rtn-3"], [before, after], ("main", "branch"), "prose")
    a, b = figure["data"]
    assert (a["name"], b["name"]) == ("A: main", "B: branch")
    assert a["x"] == [kl_coordinate(0.1)]
    assert b["y"] == [0.15, 1.15]
    assert b["text"][1] == "<b>rtn-3</b>, branch<br>KL 1 (0.5 to 2)"
    assert a["error_x"]["array"] == [kl_coordinate(0.2) - kl_coordinate(0.1)]
    assert figure["layout"]["yaxis"]["ticktext"] == ["rtn-4", "rtn-3"]
