"""Damage curves: damage against severity, with the best shape and the thresholds of each curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, position, undamaged_position
from hemorrhage.analyze.curves.entries import TOO_FEW, CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.report.charts.plotly import (
    DASHES,
    HOVER,
    SYMBOLS,
    Figure,
    Json,
    error_bars,
    frame,
    interval_bars,
    line_label,
    reference_line,
)
from hemorrhage.analyze.report.charts.scales import (
    SCALES,
    budget_coordinate,
    coordinate,
    coordinates,
    value_axis,
    written,
)
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS

X_TITLES = {
    "bits": "effective bits per parameter (measured)",
    "activation_bits": "bits of an activation",
    "cache_bits": "bits of a cached key or value",
    "sparsity": "zeros in the pruned layers (%)",
    "removed": "parameters of the blocks removed (%)",
    "added": "parameters added (%)",
    "routing": "routing disturbed (%)",
    "noise": "noise as a share of a layer's spread",
    "transform": "strength of the transform",
    "steps": "steps of training",
}

PERCENT_AXES = ("sparsity", "removed", "added", "routing")

FITTED = {"factor": "ln_perplexity_ratio", "kl": "kl_mean"}
"""Scale of a damage chart -> the metric whose shape it shows."""

LONGEST = 24
"""Characters of a label beside a dot."""

BIT_TICKS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32)


class Point(NamedTuple):
    """A point of a curve; without a variant it is the model that the curve starts at, and gets no marker."""

    x: float
    variant: Variant | None
    estimate: Estimate


@dataclass(frozen=True)
class Style:
    """The looks of a curve."""

    colour: str
    symbol: str
    dash: str


@dataclass(frozen=True)
class Chart:
    """What a damage chart shows: a corpus on a scale."""

    inputs: Inputs
    numbers: Numbers
    scale: str
    corpus: str
    budget: Mapping[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float | None:
        """The coordinate of the budget's limit; None where it limits nothing that is shown."""
        return budget_coordinate(self.scale, self.budget)

    @property
    def dataset(self) -> str:
        """The data set whose numbers are shown."""
        return ALL_TASKS if self.scale == "accuracy" else self.corpus

    def estimate(self, variant: str) -> Estimate | None:
        """Return the damage of a variant; None: not measured."""
        return self.numbers.get(variant, SCALES[self.scale].metric, self.dataset)

    def coordinate(self, value: float) -> float:
        """Return the coordinate of a value on the axis of damage."""
        return coordinate(self.scale, value)


def damage(chart: Chart, sweeps: Sequence[Sweep], entries: Sequence[CurveEntry]) -> Figure:
    """Draw damage against severity for sweeps on one axis; a dot chart where no curve has two points."""
    if all(len(sweep.variants) < 2 for sweep in sweeps):
        return _dots(chart, sweeps)
    axis = sweeps[0].axis
    start = on_axis(undamaged_position(chart.inputs, axis), axis)
    base = chart.estimate(BASE)
    traces: list[Json] = []
    styles = curve_styles(sweeps)
    extent: list[float] = []
    for sweep in sweeps:
        points = _points(chart, sweep, start)
        if points:
            traces += _curve(points, sweep.name, chart.scale, styles[sweep.name])
            extent += [chart.coordinate(number) for point in points for number in point.estimate[:3]]
    extent.append(chart.coordinate(base.value) if base else 0.0)
    extent += [chart.limit] if chart.limit is not None else []
    for sweep in sweeps:
        for entry in entries:
            if (entry.name, entry.corpus) == (sweep.name, chart.corpus):
                traces += _thresholds(entry, chart.scale, styles[sweep.name].colour)
    traces.sort(key=lambda trace: (trace["mode"] == "markers", "fill" not in trace))  # bands below, points on top
    layout = frame(_x_axis(axis, start, traces), value_axis(chart.scale, extent, ticks=12))
    _add_references(layout, chart, extent)
    return {"data": traces, "layout": layout}


def on_axis(value: float, axis: str) -> float:
    """Return a position as the axis shows it: shares in per cent."""
    return 100 * value if axis in PERCENT_AXES else value


def _points(chart: Chart, sweep: Sweep, start: float) -> list[Point]:
    """Return the measured points of a curve, from the undamaged model on.

    The first is the model that the variants alter, where it was measured and the curve has two points more.
    """
    points = []
    for variant in sweep.variants:
        estimate = chart.estimate(variant.name)
        if estimate:
            points.append(Point(on_axis(position(variant), sweep.axis), variant, estimate))
    points.sort(key=lambda point: abs(point.x - start))
    altered = chart.estimate(sweep.on)
    if len(points) > 1 and altered is not None:
        x = on_axis(undamaged_position(chart.inputs, sweep.axis, sweep.on), sweep.axis)
        points.insert(0, Point(x, None, altered))
    return points


def curve_styles(sweeps: Sequence[Sweep]) -> dict[str, Style]:
    """Give each sweep a colour; further curves of a sweep keep its colour with open symbols and another dash."""
    colours: dict[str, int] = {}
    turns: dict[str, int] = {}
    styles = {}
    for sweep in sweeps:
        colour = colours.setdefault(sweep.sweep, len(colours))
        turn = turns.get(sweep.sweep, 0)
        turns[sweep.sweep] = turn + 1
        symbol = SYMBOLS[colour % len(SYMBOLS)]
        styles[sweep.name] = Style(
            colour=f"@series-{colour}",
            symbol=f"{symbol}-open" if turn else symbol,
            dash=DASHES[turn % len(DASHES)],
        )
    return styles


def _curve(points: Sequence[Point], name: str, scale: str, style: Style) -> list[Json]:
    """Return band, line and markers of one curve."""
    traces: list[Json] = []
    if len(points) > 1:
        x = [point.x for point in points]
        middle, low, high = ([coordinate(scale, point.estimate[:3][end]) for point in points] for end in range(3))
        common = {
            "type": "scatter",
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": name,
        }
        band = {"x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself", "line": {"width": 0}}
        line = {"x": x, "y": middle, "line": {"color": style.colour, "width": 2, "dash": style.dash}}
        traces += [{**common, **band, "fillcolor": f"{style.colour}/0.18"}, {**common, **line}]
    measured = [(point.x, point.variant, point.estimate) for point in points if point.variant]
    middle = [coordinate(scale, estimate.value) for _, _, estimate in measured]
    traces.append(
        {
            "type": "scatter",
            "x": [x for x, _, _ in measured],
            "y": middle,
            "name": name,
            "legendgroup": name,
            "mode": "markers",
            "marker": {
                "color": style.colour,
                "symbol": style.symbol,
                "size": 8,
                "opacity": 1,
                "line": {"color": style.colour, "width": 1.5},
            },
            "error_y": interval_bars([coordinates(scale, each) for _, _, each in measured], style.colour, width=3),
            "text": [hover_text(variant, scale, estimate) for _, variant, estimate in measured],
            "hovertemplate": HOVER,
        }
    )
    return traces


def hover_text(variant: Variant, scale: str, estimate: Estimate) -> str:
    """Describe a point: its variant, its damage and its size."""
    lines = [f"<b>{variant.name}</b>", variant.label, f"{SCALES[scale].title}: {written(scale, estimate)}"]
    bits = variant.manifest.get("effective_bits")
    if bits is not None:
        lines.append(
            f"{bits:.2f} effective bits, {100 * variant.manifest['size_ratio']:.0f}\u00a0% of the base's stored bits"
        )
    return "<br>".join(lines)


def _thresholds(entry: CurveEntry, scale: str, colour: str) -> list[Json]:
    """Return the best shape of a curve, its knee, and its doubling point on the line of twice the perplexity.

    A curve on another variant is described by what it adds to that one, which is not what the chart shows: no shape.
    """
    traces = []
    fit = entry.fits.get(FITTED.get(scale, "")) if entry.on == BASE else None
    definition = "knee" if scale == "factor" else "kl_knee"
    knee, doubling = entry.thresholds[definition], entry.thresholds["two_fold"]
    if fit and knee.answer != TOO_FEW:
        x, y = [on_axis(value, entry.axis) for value in fit.x], [coordinate(scale, value) for value in fit.y]
        line = {"color": colour, "width": 1.4, "dash": "dot"}
        looks = {"hoverinfo": "skip", "showlegend": False, "legendgroup": entry.name}
        traces.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, **looks})
        if knee.is_located:
            height = _height(x, y, on_axis(knee.estimate, entry.axis))
            traces.append(_mark(entry, definition, "knee", height, colour))
    if scale == "factor" and doubling.is_located:
        traces.append(_mark(entry, "two_fold", "perplexity doubles", coordinate("factor", math.log(2)), colour))
    return traces


def _height(x: Sequence[float], y: Sequence[float], at: float) -> float:
    points = sorted(zip(x, y, strict=True))
    return float(np.interp(at, [point[0] for point in points], [point[1] for point in points]))


def _mark(entry: CurveEntry, definition: str, name: str, height: float, colour: str) -> Json:
    """Return a threshold with its interval along x; where that is open, up to the threshold itself."""
    threshold = entry.thresholds[definition]
    centre = on_axis(threshold.estimate, entry.axis)
    low = centre if threshold.low is None else on_axis(threshold.low, entry.axis)
    high = centre if threshold.high is None else on_axis(threshold.high, entry.axis)
    unit = "%" if entry.axis in PERCENT_AXES else "bits"
    text = f"{entry.name}: {name} at {centre:.3g} {unit} ({low:.3g} to {high:.3g})"
    doubling = {"symbol": "line-ns-open", "size": 16}
    shape = doubling if definition == "two_fold" else {"symbol": "diamond-open", "size": 13}
    return {
        "type": "scatter",
        "x": [centre],
        "y": [height],
        "mode": "markers",
        "marker": {**shape, "color": colour, "line": {"width": 2.5, "color": colour}},
        "error_x": error_bars([max(high - centre, 0)], [max(centre - low, 0)], colour, thickness=2.5),
        "name": entry.name,
        "legendgroup": entry.name,
        "showlegend": False,
        "text": [text],
        "hovertemplate": HOVER,
    }


def _dots(chart: Chart, sweeps: Sequence[Sweep]) -> Figure:
    """Draw a row per variant, its damage with the interval along x."""
    names, middles, lows, highs, texts = [], [], [], [], []
    for sweep in sweeps:
        for variant in sweep.variants:
            estimate = chart.estimate(variant.name)
            if estimate:
                # A long label would leave no room for the dots; the text of a point has it.
                names.append(f"{sweep.name}<br>{variant.label}" if len(variant.label) <= LONGEST else variant.name)
                middles.append(chart.coordinate(estimate.value))
                lows.append(chart.coordinate(estimate.low))
                highs.append(chart.coordinate(estimate.high))
                texts.append(hover_text(variant, chart.scale, estimate))
    trace = {
        "type": "scatter",
        "x": middles,
        "y": names,
        "mode": "markers",
        "marker": {"color": "@series-0", "size": 10},
        "error_x": interval_bars(list(zip(middles, lows, highs, strict=True)), "@series-0", thickness=2, width=4),
        "text": texts,
        "hovertemplate": HOVER,
        "showlegend": False,
    }
    base = chart.estimate(BASE)
    extent = [*lows, *highs, chart.coordinate(base.value) if base else 0.0]
    extent += [chart.limit] if chart.limit is not None else []
    y_axis = {"autorange": "reversed", "automargin": True, "showgrid": False, "ticks": ""}
    layout = frame(value_axis(chart.scale, extent, ticks=7), y_axis)
    lines = [(chart.coordinate(base.value), "base", "solid")] if base else []
    if chart.scale == "factor" and max(extent) > math.log(2):
        lines.append((math.log(2), "doubled", "dash"))
    if chart.limit is not None:
        lines.append((chart.limit, "budget", "dash"))
    layout["shapes"] = [reference_line("x", value, dash) for value, _, dash in lines]
    layout["annotations"] = [line_label("x", value, label) for value, label, _ in lines]
    layout["margin"]["t"] = 24
    return {"data": [trace], "layout": layout}


def _add_references(layout: Json, chart: Chart, extent: Sequence[float]) -> None:
    """Add lines at 10 % more and twice the perplexity, and at the accuracy of guessing."""
    height = max(extent) - min(extent)
    lines: list[tuple[float, str]] = []
    if chart.scale == "factor":
        lines = [(math.log(1.1), "+10\u00a0%"), (math.log(2), "doubled")]
        # A line that coincides with the base's says nothing.
        lines = [line for line in lines if 0.06 * height < line[0] < max(extent)]
    chance = chart.numbers.get(BASE, "chance", ALL_TASKS)
    if chart.scale == "accuracy" and chance:
        lines = [(100 * chance.value, "guessing")]
        layout["yaxis"]["range"][0] = min(layout["yaxis"]["range"][0], 100 * chance.value - 3)
    if chart.limit is not None:
        lines = [*(line for line in lines if abs(line[0] - chart.limit) > 0.06 * height), (chart.limit, "budget")]
    layout["shapes"] = [reference_line("y", value, "dash") for value, _ in lines]
    layout["annotations"] = [line_label("y", value, label) for value, label in lines]


def _x_axis(axis: str, start: float, traces: Sequence[Json]) -> Json:
    values = [value for trace in traces for value in trace["x"]]
    low, high = min([start, *values]), max([start, *values])
    if axis in FEWER_IS_WORSE:
        # Damage grows to the right, as fewer bits are left; logarithmic, for what matters is at the end.
        ends = [math.log10(high) + 0.02, math.log10(low) - 0.02]
        ticks = [tick for tick in BIT_TICKS if 0.95 * low <= tick <= 1.05 * high]
        scale = {"type": "log", "range": ends, "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    else:
        pad = 0.03 * (high - low or 1.0)
        scale = {"range": [low - pad, high + pad]}
    return {"title": {"text": X_TITLES.get(axis, axis)}, "zeroline": False, **scale}
