"""The chart of damage against speed, both as an engine has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.charts.plotly import (
    SYMBOLS,
    Figure,
    Json,
    frame,
    interval_bars,
    line_label,
    reference_line,
)
from hemorrhage.analyze.report.charts.scales import budget_coordinate, coordinates, value_axis, written
from hemorrhage.analyze.rows.tables import Estimate, Numbers

SPEED = "decode_tokens_per_second"


class Point(NamedTuple):
    """A variant in an engine."""

    variant: str
    speed: Estimate
    kl: Estimate


def speed(inputs: Inputs, numbers: Numbers, corpus: str, budget: Mapping[str, float]) -> Figure | None:
    """Draw the KL of what engines serve against the tokens per second that they decode; None where none was timed."""
    engines = {engine: list(_points(inputs, numbers, corpus, engine)) for engine in inputs.served}
    timed = {engine: points for engine, points in engines.items() if points}
    if not timed:
        return None
    traces = [_trace(engine, points, index) for index, (engine, points) in enumerate(timed.items())]
    limit = budget_coordinate("kl", budget)
    ends = [end for points in timed.values() for point in points for end in coordinates("kl", point.kl)]
    layout = frame(
        {"title": {"text": "tokens decoded per second"}, "rangemode": "tozero", "zeroline": False},
        value_axis("kl", [*ends, *([] if limit is None else [limit])], ticks=12),
    )
    if limit is not None:
        layout["shapes"] = [reference_line("y", limit, "dash")]
        layout["annotations"] = [line_label("y", limit, "budget")]
    return {"data": traces, "layout": layout}


def _points(inputs: Inputs, numbers: Numbers, corpus: str, engine: str) -> Iterator[Point]:
    for name in inputs.served[engine]:
        timed = numbers.get(name, of_engine(SPEED, engine))
        kl = numbers.get(name, of_engine("kl_mean", engine), corpus)
        if timed and kl:
            yield Point(name, timed, kl)


def _trace(engine: str, points: list[Point], index: int) -> Json:
    colour = f"@series-{index}"
    heights = [coordinates("kl", point.kl) for point in points]
    return {
        "type": "scatter",
        "x": [point.speed.value for point in points],
        "y": [value for value, _, _ in heights],
        "mode": "markers+text",
        "name": engine,
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10},
        "text": [point.variant for point in points],
        "textposition": "top center",
        "textfont": {"size": 11, "color": "@muted"},
        "error_x": interval_bars([point.speed[:3] for point in points], colour),
        "error_y": interval_bars(heights, colour),
        "hovertext": [_hover(engine, point) for point in points],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _hover(engine: str, point: Point) -> str:
    kl = written("kl", point.kl)
    return f"<b>{point.variant}</b> in {engine}<br>{point.speed.value:,.0f} tokens/s<br>KL: {kl}"
