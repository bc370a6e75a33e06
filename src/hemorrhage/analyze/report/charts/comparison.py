"""The chart of two studies side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hemorrhage.analyze.report.charts.plotly import HOVER, SYMBOLS, Figure, Json, frame, interval_bars
from hemorrhage.analyze.report.charts.scales import SCALES, coordinate, value_axis, written
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS


def side_by_side(
    names: Sequence[str], numbers: Sequence[Numbers], labels: Sequence[str], corpus: str, scale: str = "kl"
) -> Figure:
    """Draw a row per variant, with its damage in each of two studies; a study without the number has no point."""
    traces: list[Json] = []
    extent = [0.0] if scale == "kl" else []
    metric, dataset = SCALES[scale].metric, ALL_TASKS if scale == "accuracy" else corpus
    for turn, (of_study, label) in enumerate(zip(numbers, labels, strict=True)):
        estimates = [(row, name, of_study.get(name, metric, dataset)) for row, name in enumerate(names)]
        points = [(row, name, estimate) for row, name, estimate in estimates if estimate]
        ends = [number for _, _, estimate in points for number in estimate[:3] if math.isfinite(number)]
        extent += [coordinate(scale, number) for number in ends]
        colour = f"@series-{turn}"
        places = [[coordinate(scale, number) for number in estimate[:3]] for _, _, estimate in points]
        traces.append(
            {
                "type": "scatter",
                "x": [value for value, _, _ in places],
                "y": [row + (turn - 0.5) * 0.3 for row, _, _ in points],
                "mode": "markers",
                "name": f"{'AB'[turn]}: {label}",
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn]},
                "error_x": interval_bars(places, colour),
                "text": [
                    f"<b>{name}</b>, {label}<br>{SCALES[scale].name} {written(scale, estimate)}"
                    for _, name, estimate in points
                ],
                "hovertemplate": HOVER,
            }
        )
    y_axis = {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [len(names) - 0.5, -0.5],
        "zeroline": False,
    }
    return {"data": traces, "layout": frame(value_axis(scale, extent or [0.0], ticks=7), y_axis)}
