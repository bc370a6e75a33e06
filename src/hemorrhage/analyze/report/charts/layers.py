"""Charts of the diagnostics by layer: maps over all variants, and one variant's profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.report.charts.heatmap import Colours, heatmap
from hemorrhage.analyze.report.charts.plotly import DASHES, Figure, Json, frame
from hemorrhage.analyze.rows.plots import layer_table
from hemorrhage.analyze.rows.tables import Estimate


class LayerMap(NamedTuple):
    """A map: ``name`` on its button, its ``title``, and the function that turns a value into a level of colour."""

    name: str
    title: str
    level: Callable[[float], float]


def _square_root(value: float) -> float:
    return math.copysign(min(abs(value), 1.0) ** 0.5, value)


LAYER_MAPS = {
    "local_error": LayerMap("Local error", "local error", _square_root),
    "inherited_error": LayerMap("Inherited error", "inherited error", _square_root),
    "attention_js": LayerMap("Attention", "attention divergence, nats", _square_root),
    "attention_entropy": LayerMap("Entropy", "entropy of attention", float),
    "attention_sink": LayerMap("Sink", "attention on the first token", float),
    "lens_kl": LayerMap("Logit lens", "logit lens KL, nats", float),
}
"""Metric of a layer -> its map."""

PROFILES = {
    "cascade": {
        "relative_error": "error after the block",
        "local_error": "made by the block",
        "inherited_error": "inherited",
    },
    "attention": {
        "attention_js": "divergence from the base, nats",
        "attention_entropy": "entropy, share of its largest",
        "attention_sink": "on the first token, share",
    },
}
"""What a profile of one variant shows; dashed, the same of the base where it is a level and no divergence."""

LEVELS = ("attention_entropy", "attention_sink")
"""Metrics that the base has, too."""


def layer_maps(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Figure]:
    """Draw ``layers|<metric>``: variants by layer."""
    table = layer_table(rows, list(LAYER_MAPS))
    maps = {}
    for metric, layer_map in LAYER_MAPS.items():
        measured = table[(table["metric"] == metric) & table["variant"].isin(list(names))]
        if measured.empty:
            continue
        columns = [str(layer) for layer in sorted(measured["layer"].unique())]
        cells: dict[str, dict[str, Estimate | None]] = {name: {} for name in names}
        order = ["variant", "layer", "estimate", "low", "high"]
        for variant, layer, *ends in measured[order].itertuples(index=False, name=None):
            cells[variant][str(layer)] = _estimate(metric, *ends)
        title = f"{layer_map.title}, by layer"
        maps[f"layers|{metric}"] = heatmap(cells, columns, title, with_interval, Colours(layer_map.level))
    return maps


def _estimate(metric: str, value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 0, p=math.nan, q=math.nan, mde=math.nan, metric=metric, protocol="")


def with_interval(estimate: Estimate) -> str:
    """Write a number with its interval, where it has one."""
    if math.isnan(estimate.low):
        return f"{estimate.value:.2g}"
    return f"{estimate.value:.2g} ({estimate.low:.2g} to {estimate.high:.2g})"


def profiles(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Figure]:
    """Draw ``cascade|<variant>`` and ``attention|<variant>``: lines over the layers, bands are intervals."""
    metrics = [metric for lines in PROFILES.values() for metric in lines]
    table = layer_table(rows, metrics).sort_values("layer", kind="stable")
    by_metric = dict(list(table.groupby(["variant", "metric"], sort=False)))
    drawn: dict[str, Figure] = {}
    for profile, lines in PROFILES.items():
        for name in names:
            traces = []
            for turn, (metric, label) in enumerate(lines.items()):
                layers = by_metric.get((name, metric))
                if layers is not None:
                    traces += _line(layers, label, f"@series-{turn}")
                base = by_metric.get((BASE, metric))
                if traces and metric in LEVELS and base is not None:
                    traces += _line(base, f"{label}, base", f"@series-{turn}", DASHES[2])
            if traces:
                x_axis = {"title": {"text": "layer"}, "zeroline": False}
                y_axis = {"title": {"text": "of the state's norm" if profile == "cascade" else ""}, "zeroline": True}
                drawn[f"{profile}|{name}"] = {"data": traces, "layout": frame(x_axis, y_axis)}
    return drawn


def _line(layers: pd.DataFrame, label: str, colour: str, dash: str = "solid") -> list[Json]:
    x = layers["layer"].tolist()
    values = {end: [_rounded(value) for value in layers[end]] for end in ("estimate", "low", "high")}
    traces: list[Json] = []
    if layers["low"].notna().all() and dash == "solid":
        band = {"x": [*x, *reversed(x)], "y": [*values["high"], *reversed(values["low"])], "fill": "toself"}
        style = {"mode": "lines", "line": {"width": 0}, "fillcolor": f"{colour}/0.18"}
        traces.append({"type": "scatter", **band, **style, "hoverinfo": "skip", "showlegend": False})
    traces.append(
        {
            "type": "scatter",
            "x": x,
            "y": values["estimate"],
            "mode": "lines+markers" if dash == "solid" else "lines",
            "marker": {"size": 5, "color": colour},
            "line": {"color": colour, "width": 2, "dash": dash},
            "name": label,
        }
    )
    return traces


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")
