"""Small multiples: the damage of one variant over many studies, by what was swept between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hemorrhage.analyze.report.charts.plotly import DASHES, HOVER, SYMBOLS, Figure, Json, frame, interval_bars
from hemorrhage.analyze.report.charts.scales import coordinate, value_axis

LOGARITHMIC = "kl_mean"
"""The metric whose axis is linear near 0 and logarithmic above, as on the page of one study."""


class Place(NamedTuple):
    """Where a study stands: ``at`` on the axis under ``label``, on the line of ``group``."""

    revision: str
    at: float
    label: str
    group: str


class Point(NamedTuple):
    """A number of a study with its interval, and its difference from the first study's, NaN where there is none."""

    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    certain: bool

    @property
    def change(self) -> str:
        """The difference with its interval; empty where there is none."""
        if math.isnan(self.difference):
            return ""
        if math.isnan(self.difference_low):
            return f"{self.difference:+.3g}"
        return f"{self.difference:+.3g} ({self.difference_low:+.3g} to {self.difference_high:+.3g})"


class Shown(Protocol):
    """What a chart shows."""

    @property
    def metric(self) -> str:
        """The metric, without its protocol."""

    @property
    def name(self) -> str:
        """How people call it, and on which data set."""


def panel(axis: str, places: Sequence[Place], points: Sequence[Point | None], shown: Shown) -> Figure:
    """Draw a point for each study that has the number, and a line through those of a group."""
    traces: list[Json] = []
    extent: list[float] = []
    groups = list(dict.fromkeys(place.group for place in places))
    for turn, group in enumerate(groups):
        pairs = [(place, point) for place, point in zip(places, points, strict=True) if place.group == group and point]
        pairs.sort(key=lambda pair: pair[0].at)
        heights = [[_height(shown.metric, number) for number in point[:3]] for _, point in pairs]
        extent += [number for ends in heights for number in ends if math.isfinite(number)]
        colour = f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": group or shown.name,
                "showlegend": len(groups) > 1,
                "x": [place.at for place, _ in pairs],
                "y": [value for value, _, _ in heights],
                "line": {"color": colour, "width": 1.3, "dash": DASHES[turn // 6 % len(DASHES)]},
                "marker": {"color": colour, "size": 7, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
                "error_y": interval_bars(heights, colour),
                "text": [_said(place, point, shown) for place, point in pairs],
                "hovertemplate": HOVER,
            }
        )
    return {"data": traces, "layout": frame(_across(axis, places), _up(shown.metric, extent))}


def _height(metric: str, value: float) -> float:
    return coordinate("kl", value) if metric == LOGARITHMIC else value


def _said(place: Place, point: Point, shown: Shown) -> str:
    interval = "" if math.isnan(point.low) else f" ({point.low:.3g} to {point.high:.3g})"
    lines = [f"<b>{place.revision}</b>", f"{shown.name}: {point.value:.4g}{interval}"]
    if point.change:
        lines.append(f"from the first: {point.change}")
    return "<br>".join(lines)


def _across(axis: str, places: Sequence[Place]) -> Json:
    ticks = dict.fromkeys((place.at, place.label) for place in places)
    if len(ticks) > 8 and all(label == f"{at:g}" for at, label in ticks):
        return {"title": {"text": axis}}
    return {"title": {"text": axis}, "tickvals": [at for at, _ in ticks], "ticktext": [label for _, label in ticks]}


def _up(metric: str, extent: Sequence[float]) -> Json:
    if metric == LOGARITHMIC:
        return {**value_axis("kl", extent or [0.0], ticks=5), "title": None}
    return {"zeroline": False}
