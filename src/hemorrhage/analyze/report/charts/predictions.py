"""The chart of predicted against observed damage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from hemorrhage.analyze.doctor.doctor import BY_METHOD, BY_MODEL, Doctor
from hemorrhage.analyze.doctor.laws import CAP, FLOOR
from hemorrhage.analyze.report.charts.plotly import HOVER, Figure, Json, error_bars

TARGET = "kl_mean"


class Stage(NamedTuple):
    """What a prediction was learned from, and how it is drawn."""

    name: str
    colour: str
    symbol: str


STAGES = {
    BY_MODEL: Stage("other models alone", "@series-0", "circle"),
    BY_METHOD: Stage("this model's other methods, too", "@series-1", "diamond"),
}
"""What was left out of the learning -> what was learned from."""


class Prediction(NamedTuple):
    """A predicted damage of a variant on a corpus, with its interval, and the damage that was observed."""

    variant: str
    corpus: str
    observed: float
    predicted: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """Both ends of the interval."""
        return f"{self.low:.2g} to {self.high:.2g}"

    @property
    def is_missed(self) -> bool:
        """Whether the observed damage is outside the interval."""
        return not self.low <= self.observed <= self.high


def predictions(rows: pd.DataFrame) -> Iterator[Prediction]:
    """Read the rows of predictions of one stage."""
    if len(rows):
        yield from (Prediction(*row) for row in rows[list(Prediction._fields)].itertuples(index=False, name=None))


def predicted_against_observed(doctor: Doctor, corpus: str) -> Figure:
    """Draw predicted against observed KL on a corpus, by stage."""
    axis: Json = {
        "type": "log",
        "range": [math.log10(FLOOR) - 0.1, math.log10(CAP) + 0.1],
        "tickvals": [0.001, 0.01, 0.1, 1, 5],
        "ticktext": ["0.001", "0.01", "0.1", "1", "5"],
        "gridcolor": "@grid",
        "color": "@muted",
        "zeroline": False,
        "fixedrange": True,
    }
    diagonal: Json = {
        "type": "scatter",
        "x": [FLOOR, CAP],
        "y": [FLOOR, CAP],
        "mode": "lines",
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    layout: Json = {
        "xaxis": {**axis, "title": {"text": "observed KL, nats per token"}},
        "yaxis": {**axis, "title": {"text": "predicted KL"}},
        "margin": {"l": 60, "r": 16, "t": 10, "b": 56},
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "font": {"color": "@ink"},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "hovermode": "closest",
    }
    stages = [
        _stage(STAGES[left_out.by], [each for each in predictions(left_out.rows) if each.corpus == corpus])
        for left_out in doctor.left_out[TARGET]
    ]
    return {"data": [diagonal, *stages], "layout": layout}


def _stage(stage: Stage, points: list[Prediction]) -> Json:
    return {
        "type": "scatter",
        "x": [point.observed for point in points],
        "y": [point.predicted for point in points],
        "mode": "markers",
        "name": stage.name,
        "marker": {"color": stage.colour, "symbol": stage.symbol, "size": 8},
        "error_y": error_bars(
            [point.high - point.predicted for point in points],
            [point.predicted - point.low for point in points],
            stage.colour,
            thickness=1,
        ),
        "text": [
            f"<b>{point.variant}</b><br>KL {point.observed:.2g}, predicted {point.predicted:.2g} ({point.interval})"
            for point in points
        ],
        "hovertemplate": HOVER,
    }
