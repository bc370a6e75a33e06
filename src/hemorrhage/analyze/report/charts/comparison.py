"""The chart of two studies side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hemorrhage.analyze.report.charts.plotly import HOVER, SYMBOLS, Figure, Json, error_bars, frame
from hemorrhage.analyze.report.charts.scales import coordinate, value_axis, written
from hemorrhage.analyze.rows.tables import Numbers


def side_by_side(names: Sequence[str], numbers: Sequence[Numbers], labels: Sequence[str], corpus: str) -> Figure:
    """Draw a row per variant, with its KL in each of two studies."""
    traces: list[Json] = []
    extent = [0.0]
    for turn, (of_study, label) in enumerate(zip(numbers, labels, strict=True)):
        estimates = [(row, name, of_study.get(name, "kl_mean", corpus)) for row, name in enumerate(names)]
        points = [(row, name, kl) for row, name, kl in estimates if kl]
        extent += [coordinate("kl", number) for _, _, kl in points for number in kl[:3] if math.isfinite(number)]
        colour = f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "x": [coordinate("kl", kl.value) for _, _, kl in points],
                "y": [row + (turn - 0.5) * 0.3 for row, _, _ in points],
                "mode": "markers",
                "name": f"{'AB'[turn]}: {label}",
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn]},
                "error_x": error_bars(
                    [coordinate("kl", kl.high) - coordinate("kl", kl.value) for _, _, kl in points],
                    [coordinate("kl", kl.value) - coordinate("kl", kl.low) for _, _, kl in points],
                    colour,
                ),
                "text": [f"<b>{name}</b>, {label}<br>KL {written('kl', kl)}" for _, name, kl in points],
                "hovertemplate": HOVER,
            }
        )
    y_axis = {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [len(names) - 0.5, -0.5],
        "zeroline": False,
    }
    return {"data": traces, "layout": frame(value_axis("kl", extent, ticks=7), y_axis)}
