"""Heat maps of variants (rows) by layers, tokens, tasks or strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hemorrhage.analyze.report.charts.plotly import Figure, frame
from hemorrhage.analyze.rows.tables import Estimate

WIDE_COLUMNS = 8
"""The most columns of a heat map whose cells have room for a number."""

Cells = Mapping[str, Mapping[str, Estimate | None]]
"""Row -> column -> estimate; None: not measured."""


@dataclass(frozen=True)
class Colours:
    """The colour scale: ``level`` turns a value into its coordinate on the scale.

    Colours go from the page's ground up, and where ``signed`` from one colour over it to another.
    """

    level: Callable[[float], float] = float
    signed: bool = False


def heatmap(
    cells: Cells,
    columns: Sequence[str],
    title: str,
    written: Callable[[Estimate], str],
    colours: Colours = Colours(),
) -> Figure:
    """Draw rows by ``columns``; white where nothing was measured.

    ``written`` writes a value with its interval behind it; the value is also in the cell where columns are wide enough.
    """
    measured = {row: values for row, values in cells.items() if any(values.get(column) for column in columns)}
    z: list[list[float | None]] = []
    texts: list[list[str]] = []
    labels: list[list[str]] = []
    for row, values in measured.items():
        estimates = [values.get(column) for column in columns]
        z.append([float(f"{colours.level(each.value):.4g}") if each else None for each in estimates])
        texts.append(
            [
                f"<b>{row}</b>, {column}<br>{title}: {written(each)}" if each else ""
                for column, each in zip(columns, estimates, strict=True)
            ]
        )
        labels.append([written(each).partition(" (")[0] if each else "" for each in estimates])
    heights = [value for line in z for value in line if value is not None] or [0.0]
    most = max(abs(value) for value in heights) or 1.0
    limits = {"zmin": -most, "zmax": most} if colours.signed else {"zmin": min(0.0, *heights), "zmax": max(heights)}
    both = [[0, "@series-1"], [0.5, "@band"], [1, "@series-0"]]
    trace = {
        "type": "heatmap",
        "x": list(columns),
        "y": list(measured),
        "z": z,
        **limits,
        "colorscale": both if colours.signed else [[0, "@band"], [1, "@series-1"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertext": texts,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    if len(columns) <= WIDE_COLUMNS:
        trace |= {"text": labels, "texttemplate": "%{text}"}
    y_axis = {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""}
    x_axis = {"type": "category", "title": {"text": title}, "showgrid": False, "ticks": "", "side": "top"}
    return {"data": [trace], "layout": frame(x_axis, y_axis)}
