"""Charts of what happens inside the network, layer by layer: maps over all variants, and one variant's profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.report.figures import DASHES, Figure, frame, heat
from hemorrhage.analyze.rows.plots import layer_table
from hemorrhage.analyze.rows.tables import Estimate


class Map(NamedTuple):
    """A map: what its button says, what it shows, how a value becomes a place on the colour's scale."""

    name: str
    title: str
    placed: Callable[[float], float]


def _root(value: float) -> float:
    return math.copysign(min(abs(value), 1.0) ** 0.5, value)


def _level(value: float) -> float:
    return value


MAPS = {
    "local_error": Map("Local error", "the block's own error", _root),
    "inherited_error": Map("Inherited error", "inherited error", _root),
    "attention_js": Map("Attention", "attention divergence, nats", _root),
    "attention_entropy": Map("Entropy", "entropy of attention", _level),
    "attention_sink": Map("Sink", "attention on the first token", _level),
    "lens_kl": Map("Logit lens", "logit lens KL, nats", _level),
}

PROFILES = {
    "cascade": {
        "relative_error": "error behind the block",
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

OF_BASE = ("attention_entropy", "attention_sink")


def layer_maps(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Figure]:
    """``layers|<metric>``: variants by layer."""
    table = layer_table(rows, list(MAPS))
    found = {}
    for metric, shape in MAPS.items():
        mine = table[(table["metric"] == metric) & table["variant"].isin(list(names))]
        if mine.empty:
            continue
        columns = [str(layer) for layer in sorted(mine["layer"].unique())]
        cells: dict[str, dict[str, Estimate | None]] = {name: {} for name in names}
        for row in mine.itertuples(index=False):
            cells[row.variant][str(row.layer)] = _estimate(row)
        found[f"layers|{metric}"] = heat(cells, columns, f"{shape.title}, by layer", told, shape.placed)
    return found


def _estimate(row: Any) -> Estimate:
    nothing = math.nan
    return Estimate(row.estimate, row.low, row.high, 0, nothing, nothing, nothing, row.metric, "")


def told(found: Estimate) -> str:
    """A number with its interval, where it has one."""
    if math.isnan(found.low):
        return f"{found.value:.2g}"
    return f"{found.value:.2g} ({found.low:.2g} to {found.high:.2g})"


def profiles(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Figure]:
    """``cascade|<variant>`` and ``attention|<variant>``: lines over the layers, with bands that are intervals."""
    metrics = [metric for lines in PROFILES.values() for metric in lines]
    table = layer_table(rows, metrics).sort_values("layer", kind="stable")
    parts = dict(list(table.groupby(["variant", "metric"], sort=False)))
    found = {}
    for kind, lines in PROFILES.items():
        for name in names:
            traces = []
            for turn, (metric, label) in enumerate(lines.items()):
                part = parts.get((name, metric))
                if part is not None:
                    traces += _line(part, label, f"@series-{turn}")
                base = parts.get((BASE, metric))
                if traces and metric in OF_BASE and base is not None:
                    traces += _line(base, f"{label}, base", f"@series-{turn}", DASHES[2])
            if traces:
                x_axis = {"title": {"text": "layer"}, "zeroline": False}
                y_axis = {"title": {"text": "of the state's norm" if kind == "cascade" else ""}, "zeroline": True}
                found[f"{kind}|{name}"] = {"data": traces, "layout": frame(x_axis, y_axis)}
    return found


def _line(part: pd.DataFrame, label: str, colour: str, dash: str = "solid") -> list[Figure]:
    x = part["layer"].tolist()
    values = {end: [_short(value) for value in part[end]] for end in ("estimate", "low", "high")}
    traces: list[Figure] = []
    if part["low"].notna().all() and dash == "solid":
        band = {"x": [*x, *reversed(x)], "y": [*values["high"], *reversed(values["low"])], "fill": "toself"}
        style = {"mode": "lines", "line": {"width": 0}, "fillcolor": f"{colour}/0.18"}
        traces.append({"type": "scatter", **band, **style, "hoverinfo": "skip", "showlegend": False})
    line = {"color": colour, "width": 2, "dash": dash}
    traces.append(
        {
            "type": "scatter",
            "x": x,
            "y": values["estimate"],
            "mode": "lines+markers" if dash == "solid" else "lines",
            "marker": {"size": 5, "color": colour},
            "line": line,
            "name": label,
        }
    )
    return traces


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")
