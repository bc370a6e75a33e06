"""Recovery of mitigations and their controls."""

from __future__ import annotations

from hemorrhage.analyze.report.charts.recovery import FLOOR, Point, recoveries
from hemorrhage.analyze.rows.mitigations import Recovery


def test_controls_are_open_symbols_of_their_arm() -> None:
    groups = {
        ("training", False): [Point(0.5, Recovery(0.4, 0.3, 0.5), "helps")],
        ("training", True): [Point(0.5, Recovery(-3.0, -4.0, 0.1), "harms")],
        ("scales", False): [Point(2.0, Recovery(0.0, 0.0, 0.0), "nothing")],
    }
    figure = recoveries(groups, "damage", is_relative=True, is_logarithmic=False)
    treated, control, other = figure["data"]
    assert (treated["name"], control["name"], other["name"]) == ("training", "training, control", "scales")
    assert control["marker"]["symbol"] == f"{treated['marker']['symbol']}-open"
    assert treated["marker"]["color"] == control["marker"]["color"] != other["marker"]["color"]
    assert treated["y"] == [40.0]
    assert control["y"] == [FLOOR]
    assert control["error_y"]["arrayminus"] == [0.0]
    assert control["error_y"]["array"] == [110.0]
    assert len(figure["layout"]["shapes"]) == 2
    plain = recoveries(groups, "damage", is_relative=False, is_logarithmic=True)["layout"]
    assert len(plain["shapes"]) == 1
    assert plain["xaxis"]["type"] == "log"
