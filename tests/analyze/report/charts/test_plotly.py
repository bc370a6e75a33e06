"""What the charts share."""

from __future__ import annotations

from hemorrhage.analyze.report.charts import plotly


def test_a_frame_keeps_its_axes_and_is_coloured_by_the_palette() -> None:
    layout = plotly.frame({"range": [0, 1]}, {"zeroline": False})
    assert layout["xaxis"]["range"] == [0, 1]
    assert layout["yaxis"]["zeroline"] is False
    assert {layout[axis]["gridcolor"] for axis in ("xaxis", "yaxis")} == {"@grid"}
    assert layout["font"]["color"] == "@ink"


def test_error_bars_may_lack_a_side() -> None:
    bars = plotly.error_bars([1.0, None], [0.5, 0.25], "@ink", width=3)
    assert bars["array"] == [1.0, None]
    assert bars["arrayminus"] == [0.5, 0.25]
    assert (bars["symmetric"], bars["color"], bars["width"], bars["thickness"]) == (False, "@ink", 3, 1.2)


def test_a_reference_line_crosses_the_other_axis() -> None:
    line = plotly.reference_line("y", 2.0, "dash")
    assert (line["y0"], line["y1"]) == (2.0, 2.0)
    assert (line["x0"], line["x1"], line["xref"]) == (0, 1, "paper")
    assert "yref" not in line


def test_the_name_of_a_line_is_at_its_end() -> None:
    assert plotly.line_label("y", 2.0, "doubled")["xref"] == "paper"
    along_x = plotly.line_label("x", 2.0, "doubled")
    assert (along_x["x"], along_x["y"], along_x["yref"]) == (2.0, 1, "paper")
