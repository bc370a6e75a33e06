"""What the charts share: figures as plotly.js reads them, their frame, error bars and reference lines.

Colours are names that start with ``@`` (``@ink``, ``@series-2``, ``@series-2/0.2`` for 20 % opacity): the
page puts in the palette of its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

Json = dict[str, Any]
"""A trace, an axis or a layout: plotly.js says what its keys are (plotly.com/javascript/reference)."""


class Figure(TypedDict):
    """A chart: its traces and its layout."""

    data: list[Json]
    layout: Json


SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot")

HOVER = "%{text}<extra></extra>"
"""A point's text alone, without the name of its trace."""


def frame(x_axis: Json, y_axis: Json) -> Json:
    """Return the layout of a chart with these axes."""
    common = {"gridcolor": "@grid", "linecolor": "@grid", "tickcolor": "@grid", "automargin": True}
    return {
        "xaxis": {**common, **x_axis},
        "yaxis": {**common, **y_axis},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "@ink", "size": 12},
        "hoverlabel": {
            "bgcolor": "@surface",
            "bordercolor": "@grid",
            "font": {"color": "@ink"},
            "align": "left",
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "margin": {"l": 12, "r": 12, "t": 8, "b": 8},
        "hovermode": "closest",
    }


def error_bars(
    above: Sequence[float | None], below: Sequence[float | None], colour: str, thickness: float = 1.2, width: int = 0
) -> Json:
    """Return bars that reach ``above`` and ``below`` each point; None: no bar on this side."""
    return {
        "type": "data",
        "symmetric": False,
        "array": list(above),
        "arrayminus": list(below),
        "color": colour,
        "thickness": thickness,
        "width": width,
    }


def interval_bars(places: Sequence[Sequence[float]], colour: str, thickness: float = 1.2, width: int = 0) -> Json:
    """Return bars of (value, low, high) on the axis of each point; an end that is not finite has no bar."""
    return error_bars(
        [_length(value, high) for value, _, high in places],
        [_length(low, value) for value, low, _ in places],
        colour,
        thickness,
        width,
    )


def _length(low: float, high: float) -> float | None:
    length = high - low
    return length if math.isfinite(length) else None


def reference_line(axis: str, value: float, dash: str) -> Json:
    """Return a line across the whole plot at a value of the axis ``x`` or ``y``."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "layer": "below",
        "line": {"color": "@muted", "width": 1, "dash": dash},
    }


def line_label(axis: str, value: float, text: str) -> Json:
    """Return the name of a reference line, at its end."""
    along = {"x": value, "xref": "x", "y": 1, "yref": "paper", "xanchor": "center"}
    if axis == "y":
        along = {"y": value, "yref": "y", "x": 0, "xref": "paper", "xanchor": "left"}
    return {
        **along,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": "@muted"},
    }
