"""The chart of mitigations: how much of the damage each undoes, with its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hemorrhage.analyze.report.charts.plotly import HOVER, SYMBOLS, Figure, Json, frame, interval_bars, reference_line
from hemorrhage.analyze.rows.mitigations import Recovery

FLOOR = -100.0
"""Recoveries (%) below are drawn here."""


class Point(NamedTuple):
    """A recovery at ``x``, and its hover text."""

    x: float
    recovery: Recovery
    text: str


def recoveries(
    groups: Mapping[tuple[str, bool], Sequence[Point]], title: str, is_relative: bool, is_logarithmic: bool
) -> Figure:
    """Draw recoveries against ``title``, controls as open symbols; a line at 1 where that is a knee or a limit.

    ``groups``: arm and whether it is the control -> points.
    """
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    traces: list[Json] = []
    for (arm, control), points in groups.items():
        turn = arms.index(arm)
        heights = [[max(100 * number, FLOOR) for number in point.recovery] for point in points]
        symbol, colour = SYMBOLS[turn % len(SYMBOLS)], f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{arm}, control" if control else arm,
                "x": [point.x for point in points],
                "y": [value for value, _, _ in heights],
                "marker": {"color": colour, "size": 9, "symbol": f"{symbol}-open" if control else symbol},
                "error_y": interval_bars(heights, colour),
                "text": [point.text for point in points],
                "hovertemplate": HOVER,
            }
        )
    y_axis = {"title": {"text": "damage undone (%)"}, "range": [FLOOR - 5, 105], "zeroline": False}
    x_axis = {"title": {"text": title}, "zeroline": False, **({"type": "log"} if is_logarithmic else {})}
    layout = frame(x_axis, y_axis)
    layout["shapes"] = [reference_line("y", 0.0, "dash"), *([reference_line("x", 1.0, "dash")] if is_relative else [])]
    return {"data": traces, "layout": layout}
