"""The chart of trainings: loss against tokens."""

from __future__ import annotations

from collections.abc import Sequence

from hemorrhage.analyze.inputs import Training
from hemorrhage.analyze.report.charts.plotly import HOVER, SYMBOLS, Figure, Json, frame


def learning_curves(trainings: Sequence[Training], unit: str) -> Figure:
    """Draw the loss of each training as a line, and its held-out loss as points."""
    traces: list[Json] = []
    for turn, training in enumerate(trainings):
        colour = f"@series-{turn % len(SYMBOLS)}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": training.name,
                "x": training.at,
                "y": training.loss,
                "line": {"color": f"{colour}/0.5", "width": 1},
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{training.name}, held out",
                "x": training.measured_at,
                "y": training.heldout,
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
                "text": [
                    f"{training.name} after {tokens:,} tokens: {loss:.3f}"
                    for tokens, loss in zip(training.measured_at, training.heldout, strict=True)
                ],
                "hovertemplate": HOVER,
            }
        )
    layout = frame({"title": {"text": "tokens"}, "type": "log"}, {"title": {"text": unit}, "zeroline": False})
    return {"data": traces, "layout": layout}
