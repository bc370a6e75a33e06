"""Heat maps: levels, texts, colours."""

from __future__ import annotations

from hemorrhage.analyze.report.charts.heatmap import Colours, heatmap
from hemorrhage.analyze.rows.tables import Estimate
from tests.analyze.report.examples import estimate

CELLS: dict[str, dict[str, Estimate | None]] = {
    "a": {"x": estimate(0.25), "y": None},
    "b": {"x": estimate(-1.0), "y": estimate(0.5)},
    "unmeasured": {"x": None},
}


def written(number: Estimate) -> str:
    return f"{number.value} (0 to 1)"


def test_a_row_without_a_number_is_left_out_and_a_missing_cell_is_empty() -> None:
    (trace,) = heatmap(CELLS, ["x", "y"], "KL", written)["data"]
    assert trace["y"] == ["a", "b"]
    assert trace["z"] == [[0.25, None], [-1.0, 0.5]]
    assert trace["hovertext"][0] == ["<b>a</b>, x<br>KL: 0.25 (0 to 1)", ""]
    assert trace["text"] == [["0.25", ""], ["-1.0", "0.5"]]
    assert (trace["zmin"], trace["zmax"]) == (-1.0, 0.5)


def test_signed_colours_are_symmetric() -> None:
    (trace,) = heatmap(CELLS, ["x", "y"], "KL", written, Colours(level=lambda value: 2 * value, signed=True))["data"]
    assert trace["z"] == [[0.5, None], [-2.0, 1.0]]
    assert (trace["zmin"], trace["zmax"]) == (-2.0, 2.0)
    assert trace["colorscale"][1] == [0.5, "@band"]


def test_narrow_columns_have_no_text() -> None:
    columns = [str(index) for index in range(9)]
    (trace,) = heatmap({"a": {"0": estimate(1.0)}}, columns, "KL", written)["data"]
    assert "text" not in trace


def test_nothing_measured_is_an_empty_map() -> None:
    (trace,) = heatmap({"a": {}}, ["x"], "KL", written)["data"]
    assert (trace["y"], trace["z"]) == ([], [])
