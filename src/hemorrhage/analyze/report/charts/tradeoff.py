"""The chart of damage against size, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.report.charts.damage import hover_text
from hemorrhage.analyze.report.charts.plotly import (
    HOVER,
    SYMBOLS,
    Figure,
    Json,
    frame,
    interval_bars,
    line_label,
    reference_line,
)
from hemorrhage.analyze.report.charts.scales import budget_coordinate, coordinate, coordinates, value_axis
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.verdicts.shipping import FrontPoint, Lossless, lossless
from hemorrhage.compress.info import FAMILIES, FAMILY_TITLES


def tradeoff(
    inputs: Inputs, numbers: Numbers, corpus: str, front: Sequence[FrontPoint], budget: Mapping[str, float]
) -> Figure:
    """Draw KL against size for all variants, the Pareto front, and the budget's limit.

    A variant whose gain no engine can use is open and at the size that it would have; it is not on the front.
    """
    points = []
    for point in front:
        kl = numbers.get(point.variant, "kl_mean", corpus)
        if kl:
            points.append((point, kl))
    traces = [_front_line(points)]
    traces += [
        _family(inputs, family, [(point, kl) for point, kl in points if point.family == family])
        for family in sorted(dict.fromkeys(point.family for point, _ in points), key=_family_order)
    ]
    traces.append(_front_names(points))
    original = lossless(inputs)
    if original:
        traces.append(_lossless_base(original))
    x_axis = {"title": {"text": "bytes on disk (% of the base's)"}, "zeroline": False}
    ends = (coordinate("kl", end) for _, kl in points for end in kl[:3] if math.isfinite(end))
    limit = budget_coordinate("kl", budget)
    extent = [*ends, *([] if limit is None else [limit])]
    layout = frame(x_axis, value_axis("kl", extent or [0.0, 1.0], ticks=12))
    layout["yaxis"]["range"][0] -= 0.25
    if limit is not None:
        layout["shapes"] = [reference_line("y", limit, "dash")]
        layout["annotations"] = [line_label("y", limit, "budget")]
    return {"data": traces, "layout": layout}


def _percent(point: FrontPoint) -> float:
    """Return the per cent of the base's bytes; where no engine can use what was gained, those that it would have."""
    return 100 * (min(point.size, point.counted_size) if point.no_engine_because else point.size)


def _front_line(points: Sequence[tuple[FrontPoint, Estimate]]) -> Json:
    edge = [(100 * point.size, coordinate("kl", kl.value)) for point, kl in points if point.on_front]
    edge.append((100.0, 0.0))
    return {
        "type": "scatter",
        "x": [x for x, _ in edge],
        "y": [y for _, y in edge],
        "mode": "lines",
        "line": {"shape": "hv", "color": "@muted", "width": 1.5, "dash": "dot"},
        "name": "Pareto front",
        "hoverinfo": "skip",
    }


def _family(inputs: Inputs, family: str, points: Sequence[tuple[FrontPoint, Estimate]]) -> Json:
    colour, symbol = f"@series-{_family_order(family)}", SYMBOLS[_family_order(family) % len(SYMBOLS)]
    return {
        "type": "scatter",
        "x": [_percent(point) for point, _ in points],
        "y": [coordinate("kl", kl.value) for _, kl in points],
        "mode": "markers",
        "name": FAMILY_TITLES.get(family, family),
        "marker": {
            "color": colour,
            "size": [11 if point.on_front else 8 for point, _ in points],
            "opacity": 1,
            "symbol": [f"{symbol}-open" if point.no_engine_because else symbol for point, _ in points],
            "line": {"color": ["@ink" if point.on_front else colour for point, _ in points], "width": 1.5},
        },
        "error_y": interval_bars([coordinates("kl", kl) for _, kl in points], colour),
        "text": [f"{hover_text(inputs.variants[each.variant], 'kl', kl)}<br>{_sizes(each)}" for each, kl in points],
        "hovertemplate": HOVER,
    }


def _sizes(point: FrontPoint) -> str:
    share = f"on the front in {100 * point.probability:.0f}\u00a0% of the resamples"
    size = f"{100 * point.size:.1f}\u00a0% on disk, {share}"
    if not point.no_engine_because:
        return size
    return f"{size}<br>in theory {100 * point.counted_size:.1f}\u00a0%: {point.no_engine_because}"


def _front_names(points: Sequence[tuple[FrontPoint, Estimate]]) -> Json:
    front = [(point, kl) for point, kl in points if point.on_front]
    return {
        "type": "scatter",
        "x": [100 * point.size for point, _ in front],
        "y": [coordinate("kl", kl.value) for _, kl in front],
        "mode": "text",
        "text": [f"{point.variant}\u00a0\u00a0\u00a0" for point, _ in front],
        "textposition": "bottom left",
        "textfont": {"size": 11, "color": "@muted"},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": "wide",
    }


def _lossless_base(base: Lossless) -> Json:
    return {
        "type": "scatter",
        "x": [100 * base.share],
        "y": [coordinate("kl", 0.0)],
        "mode": "markers",
        "marker": {"color": "@ink", "size": 10, "symbol": "x-thin", "line": {"color": "@ink", "width": 2}},
        "name": f"The base as {base.type}, without loss",
        "hovertemplate": f"the base as {base.type}: {base.bytes / 1e6:.1f} MB<extra></extra>",
    }


def _family_order(family: str) -> int:
    order = list(FAMILIES)
    return order.index(family) if family in FAMILIES else len(order)
