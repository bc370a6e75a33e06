"""The report's charts, as plotly.js figures in plain dicts.

Colours are names that start with ``@`` (``@ink``, ``@series-2``, ``@series-2/0.2`` for 20 % opacity): the
page puts in the palette of its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, position, undamaged_position
from hemorrhage.analyze.curves.entries import TOO_FEW, CurveEntry, Threshold
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.verdicts.shipping import lossless
from hemorrhage.compress.info import FAMILIES

Figure = dict[str, Any]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
X_TITLES = {
    "bits": "effective bits per parameter (measured)",
    "activation_bits": "bits of an activation",
    "cache_bits": "bits of a cached key or value",
    "sparsity": "zeros in the pruned layers (%)",
    "removed": "parameters of the blocks removed (%)",
    "added": "parameters added (%)",
    "routing": "routing disturbed (%)",
    "steps": "steps of training",
}

SHARES = ("sparsity", "removed", "added", "routing")
"""Axes in per cent."""

SCALES = ("factor", "kl", "top1", "accuracy")
"""What the damage charts can show."""

Y_TITLES = {
    "factor": "perplexity, times the base's",
    "kl": "KL to the base (nats per token)",
    "top1": "same most likely token as the base (%)",
    "accuracy": "mean accuracy over tasks (%)",
}
METRICS = {"factor": "ln_perplexity_ratio", "kl": "kl_mean", "top1": "same_top1", "accuracy": "mean_accuracy"}

LINEAR_BELOW = 0.001
"""KL (nats) below which its axis is linear; above, it is logarithmic. A logarithmic axis alone would drop the
base model and whatever equals it, a linear one would hide small damage beside a collapse."""

FACTOR_TICKS = (
    1,
    10,
    100,
    1e3,
    1e4,
    1e6,
    1e8,
    2,
    0.5,
    30,
    300,
    1.1,
    4,
    1.3,
    1.03,
    0.9,
    1.01,
    1.05,
    1.6,
    3,
    1.2,
)
KL_TICKS = (
    0,
    0.001,
    0.01,
    0.1,
    1,
    10,
    0.003,
    0.03,
    0.3,
    3,
    30,
    0.5,
    0.7,
    2,
    1.5,
    1.2,
    0.4,
    0.2,
    5,
    0.05,
    0.02,
    0.005,
    0.002,
)
"""Places for ticks, the ones wanted most first: those too close to others are left out."""


def bent(value: float) -> float:
    """Place on the KL axis."""
    return math.asinh(value / LINEAR_BELOW)


def place(scale: str, value: float) -> float:
    """Where a metric's value stands on the axis of a scale: a log-perplexity ratio stands where it is."""
    if scale == "factor":
        return value
    return bent(value) if scale == "kl" else 100 * value


def shown(scale: str, estimate: Estimate) -> str:
    """A value with its interval, as people read it."""
    if scale == "factor":
        parts = [factor(number) for number in estimate[:3]]
    elif scale == "kl":
        parts = [f"{number:.2g}" if number else "0" for number in estimate[:3]]
    else:
        parts = [f"{100 * number:.1f}" for number in estimate[:3]]
    return f"{parts[0]} ({parts[1]} to {parts[2]})"


def factor(ln_ratio: float) -> str:
    """A log-perplexity ratio as ×1.23."""
    ratio = math.exp(min(ln_ratio, 700.0))
    if ratio >= 1e6:
        mantissa, exponent = f"{ratio:.1e}".split("e")
        return f"×{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}"
    if ratio >= 100:
        return f"×{ratio:,.0f}"
    return f"×{ratio:.3g}" if ratio >= 10 else f"×{ratio:.2f}" if ratio >= 1.1 else f"×{ratio:.3f}"


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def damage(
    inputs: Inputs,
    numbers: Numbers,
    sweeps: Sequence[Sweep],
    thresholds: Sequence[CurveEntry],
    scale: str,
    corpus: str,
) -> Figure:
    """Damage against severity for sweeps on one axis; a dot chart where no curve has two points."""
    dataset = ALL_TASKS if scale == "accuracy" else corpus
    if all(len(sweep.variants) < 2 for sweep in sweeps):
        return _dots(numbers, sweeps, scale, dataset)
    axis = sweeps[0].axis
    shares = axis in SHARES
    start = _percent(undamaged_position(inputs, axis), shares)
    base = numbers.get(BASE, METRICS[scale], dataset)
    traces: list[Figure] = []
    styles = _styles(sweeps)
    heights: list[float] = []
    for sweep in sweeps:
        points = [(variant, numbers.get(variant.name, METRICS[scale], dataset)) for variant in sweep.variants]
        known = sorted(
            ((_percent(position(variant), shares), variant, found) for variant, found in points if found),
            key=lambda point: abs(point[0] - start),
        )
        if known:
            from_base = _start(inputs, numbers, sweep, METRICS[scale], dataset, shares) if len(known) > 1 else []
            traces += _curve([*from_base, *known], sweep.name, scale, styles[sweep.name])
            heights += [place(scale, number) for _, _, found in [*from_base, *known] for number in found[:3]]
    heights.append(place(scale, base.value) if base else 0.0)
    for sweep in sweeps:
        entry = next((one for one in thresholds if (one.name, one.corpus) == (sweep.name, corpus)), None)
        if entry is not None:
            traces += _thresholds(entry, scale, shares, styles[sweep.name]["colour"])
    traces.sort(key=lambda trace: (trace["mode"] == "markers", "fill" not in trace))  # bands below, points on top
    layout = frame(_x_axis(axis, start, traces), _value_axis(scale, heights, ticks=12))
    _references(layout, scale, numbers, heights)
    return {"data": traces, "layout": layout}


def _start(
    inputs: Inputs, numbers: Numbers, sweep: Sweep, metric: str, dataset: str, shares: bool
) -> list[tuple[float, Variant | None, Estimate]]:
    """Where a curve begins: the model that its variants alter, if it was measured."""
    found = numbers.get(sweep.on, metric, dataset)
    if found is None:
        return []
    return [(_percent(undamaged_position(inputs, sweep.axis, sweep.on), shares), None, found)]


def _percent(value: float, share: bool) -> float:
    return 100 * value if share else value


def _styles(sweeps: Sequence[Sweep]) -> dict[str, dict[str, Any]]:
    """A colour per sweep; further curves of a sweep keep its colour with open symbols and another dash."""
    colours: dict[str, int] = {}
    seen: dict[str, int] = {}
    styles = {}
    for sweep in sweeps:
        colour = colours.setdefault(sweep.sweep, len(colours))
        turn = seen.get(sweep.sweep, 0)
        seen[sweep.sweep] = turn + 1
        symbol = SYMBOLS[colour % len(SYMBOLS)]
        styles[sweep.name] = {
            "colour": f"@series-{colour}",
            "symbol": f"{symbol}-open" if turn else symbol,
            "dash": DASHES[turn % len(DASHES)],
        }
    return styles


def _curve(
    points: list[tuple[float, Variant | None, Estimate]], name: str, scale: str, style: dict[str, Any]
) -> list[Figure]:
    """Band, line and markers of one curve. Points without a variant (the base) get no marker."""
    colour = style["colour"]
    traces: list[Figure] = []
    if len(points) > 1:
        x = [point[0] for point in points]
        middle, low, high = ([place(scale, point[2][:3][part]) for point in points] for part in range(3))
        common = {
            "type": "scatter",
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": name,
        }
        band = {"x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself", "line": {"width": 0}}
        line = {"x": x, "y": middle, "line": {"color": colour, "width": 2, "dash": style["dash"]}}
        traces += [{**common, **band, "fillcolor": f"{colour}/0.18"}, {**common, **line}]
    measured = [(position, variant, found) for position, variant, found in points if variant]
    middle = [place(scale, found.value) for _, _, found in measured]
    traces.append(
        {
            "type": "scatter",
            "x": [position for position, _, _ in measured],
            "y": middle,
            "name": name,
            "legendgroup": name,
            "mode": "markers",
            "marker": {
                "color": colour,
                "symbol": style["symbol"],
                "size": 8,
                "opacity": 1,
                "line": {"color": colour, "width": 1.5},
            },
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [place(scale, point[2].high) - y for point, y in zip(measured, middle, strict=True)],
                "arrayminus": [y - place(scale, point[2].low) for point, y in zip(measured, middle, strict=True)],
                "color": colour,
                "thickness": 1.2,
                "width": 3,
            },
            "text": [_hover(variant, scale, found) for _, variant, found in measured],
            "hovertemplate": "%{text}<extra></extra>",
        }
    )
    return traces


def _hover(variant: Variant, scale: str, found: Estimate) -> str:
    lines = [f"<b>{variant.name}</b>", variant.label, f"{Y_TITLES[scale]}: {shown(scale, found)}"]
    bits = variant.manifest.get("effective_bits")
    if bits is not None:
        lines.append(f"{bits:.2f} effective bits, {100 * variant.manifest['size_ratio']:.0f}\u00a0% of the base's size")
    return "<br>".join(lines)


def _thresholds(entry: CurveEntry, scale: str, shares: bool, colour: str) -> list[Figure]:
    """The best shape of a curve, its knee, and its 2x-perplexity point on the line of twice the perplexity.

    A curve on another variant is described by what it adds to that one, which is not what the chart shows: no shape.
    """
    traces = []
    fit = entry.fits.get(FITS.get(scale, "")) if entry.on == BASE else None
    knee, doubling = entry.thresholds["knee" if scale == "factor" else "kl_knee"], entry.thresholds["two_fold"]
    if fit and knee.answer != TOO_FEW:
        x, y = [_percent(value, shares) for value in fit.x], [place(scale, value) for value in fit.y]
        line = {"color": colour, "width": 1.4, "dash": "dot"}
        about = {"hoverinfo": "skip", "showlegend": False, "legendgroup": entry.name}
        traces.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, **about})
        if knee.is_located:
            at = _percent(knee.estimate, shares)
            traces.append(_mark(entry.name, knee, "knee", at, _height(x, y, at), shares, colour))
    if scale == "factor" and doubling.is_located:
        at = _percent(doubling.estimate, shares)
        height = place("factor", math.log(2))
        traces.append(_mark(entry.name, doubling, "perplexity doubles", at, height, shares, colour))
    return traces


FITS = {"factor": "ln_perplexity_ratio", "kl": "kl_mean"}
"""Scale of a damage chart -> the metric whose shape it shows."""


def _height(x: Sequence[float], y: Sequence[float], at: float) -> float:
    points = sorted(zip(x, y, strict=True))
    return float(np.interp(at, [point[0] for point in points], [point[1] for point in points]))


def _mark(
    name: str, threshold: Threshold, what: str, centre: float, height: float, shares: bool, colour: str
) -> Figure:
    """A threshold with its interval along x; where that is open, up to the threshold itself."""
    low = centre if threshold.low is None else _percent(threshold.low, shares)
    high = centre if threshold.high is None else _percent(threshold.high, shares)
    unit = "%" if shares else "bits"
    text = f"{name}: {what} at {centre:.3g} {unit} ({low:.3g} to {high:.3g})"
    shape = {"symbol": "diamond-open", "size": 13} if what == "knee" else {"symbol": "line-ns-open", "size": 16}
    return {
        "type": "scatter",
        "x": [centre],
        "y": [height],
        "mode": "markers",
        "marker": {**shape, "color": colour, "line": {"width": 2.5, "color": colour}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(high - centre, 0)],
            "arrayminus": [max(centre - low, 0)],
            "color": colour,
            "thickness": 2.5,
            "width": 0,
        },
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _dots(numbers: Numbers, sweeps: Sequence[Sweep], scale: str, dataset: str) -> Figure:
    """A row per variant, its damage with the interval along x."""
    names, middles, lows, highs, texts = [], [], [], [], []
    for sweep in sweeps:
        for variant in sweep.variants:
            found = numbers.get(variant.name, METRICS[scale], dataset)
            if found:
                names.append(f"{sweep.name}<br>{variant.label}")
                middles.append(place(scale, found.value))
                lows.append(place(scale, found.low))
                highs.append(place(scale, found.high))
                texts.append(_hover(variant, scale, found))
    trace = {
        "type": "scatter",
        "x": middles,
        "y": names,
        "mode": "markers",
        "marker": {"color": "@series-0", "size": 10},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - middle for high, middle in zip(highs, middles, strict=True)],
            "arrayminus": [middle - low for low, middle in zip(lows, middles, strict=True)],
            "color": "@series-0",
            "thickness": 2,
            "width": 4,
        },
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
    }
    base = numbers.get(BASE, METRICS[scale], dataset)
    extent = [*lows, *highs, place(scale, base.value) if base else 0.0]
    x_axis = _value_axis(scale, extent, ticks=7)
    y_axis = {"autorange": "reversed", "automargin": True, "showgrid": False, "ticks": ""}
    layout = frame(x_axis, y_axis)
    lines = [(place(scale, base.value), "base", "solid")] if base else []
    if scale == "factor" and max(extent) > math.log(2):
        lines.append((math.log(2), "doubled", "dash"))
    layout["shapes"] = [_rule("x", value, dash) for value, _, dash in lines]
    layout["annotations"] = [_label("x", value, label) for value, label, _ in lines]
    layout["margin"]["t"] = 24
    return {"data": [trace], "layout": layout}


def _rule(axis: str, value: float, dash: str) -> Figure:
    """A reference line across the plot."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "layer": "below",
        "line": {"color": "@muted", "width": 1, "dash": dash},
    }


def _label(axis: str, value: float, text: str) -> Figure:
    """What a reference line is called, at its end."""
    along = {"x": value, "xref": "x", "y": 1, "yref": "paper", "xanchor": "center"}
    if axis == "y":
        along = {"y": value, "yref": "y", "x": 0, "xref": "paper", "xanchor": "left"}
    return {
        **along,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": "@muted"},
    }


def _references(layout: Figure, scale: str, numbers: Numbers, heights: list[float]) -> None:
    extent = max(heights) - min(heights)
    lines: list[tuple[float, str]] = []
    if scale == "factor":
        lines = [(math.log(1.1), "+10\u00a0%"), (math.log(2), "doubled")]
        # A line that lies on the base's own says nothing.
        lines = [line for line in lines if 0.06 * extent < line[0] < max(heights)]
    chance = numbers.get(BASE, "chance", ALL_TASKS)
    if scale == "accuracy" and chance:
        lines = [(100 * chance.value, "guessing")]
        layout["yaxis"]["range"][0] = min(layout["yaxis"]["range"][0], 100 * chance.value - 3)
    layout["shapes"] = [_rule("y", height, "dash") for height, _ in lines]
    layout["annotations"] = [_label("y", height, label) for height, label in lines]


BIT_TICKS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32)


def _x_axis(axis: str, start: float, traces: Sequence[Figure]) -> Figure:
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


def _value_axis(scale: str, extent: Sequence[float], ticks: int) -> Figure:
    """The axis of a metric over an extent, with at most about ``ticks`` ticks."""
    low, high = min(extent), max(extent)
    pad = 0.06 * (high - low or 1.0)
    axis: Figure = {"title": {"text": Y_TITLES[scale]}, "range": [low - pad, high + pad], "zeroline": False}
    if scale in ("factor", "kl"):
        values, texts = _ticks(scale, low - pad, high + pad, ticks)
        axis |= {"tickvals": values, "ticktext": texts}
    return axis


def _ticks(scale: str, low: float, high: float, most: int) -> tuple[list[float], list[str]]:
    sign, ticks = ("×", FACTOR_TICKS) if scale == "factor" else ("", KL_TICKS)
    chosen: dict[float, str] = {}
    for tick in ticks:
        value = math.log(tick) if scale == "factor" else bent(tick)
        if low <= value <= high and all(abs(value - other) > (high - low) / most for other in chosen):
            chosen[value] = _short(tick, sign)
    return list(chosen), list(chosen.values())


def _short(value: float, sign: str) -> str:
    if value >= 1e4:
        return f"{sign}10<sup>{round(math.log10(value))}</sup>"
    return f"{sign}{value:g}"


def frame(x_axis: Figure, y_axis: Figure) -> Figure:
    """The layout of a chart with these axes, as the page's theme wants it."""
    common = {"gridcolor": "@grid", "linecolor": "@grid", "tickcolor": "@grid", "automargin": True}
    return {
        "xaxis": {**common, **x_axis},
        "yaxis": {**common, **y_axis},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "@ink", "size": 12},
        "hoverlabel": {
            "bgcolor": "@surface",
            "bordercolor": "@grid",
            "font": {"color": "@ink"},
            "align": "left",
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "margin": {"l": 12, "r": 12, "t": 8, "b": 8},
        "hovermode": "closest",
    }


def tradeoff(
    inputs: Inputs, numbers: Numbers, corpus: str, entries: Sequence[dict[str, Any]], names: dict[str, str]
) -> Figure:
    """KL against size for all variants, the Pareto front drawn.

    ``entries``: of recommendation.json's ``front``; ``names``: family -> what people call it. What no engine can use is
    open and stands at the size that it would have; it is not on the front.
    """
    points = []
    for entry in entries:
        found = numbers.get(entry["variant"], "kl_mean", corpus)
        if found:
            size = min(entry["size"], entry["counted_size"]) if entry["no_engine_because"] else entry["size"]
            points.append((entry, 100 * size, found))
    edge = [(100 * entry["size"], place("kl", found.value)) for entry, _, found in points if entry["on_front"]]
    edge.append((100.0, 0.0))
    traces: list[Figure] = [
        {
            "type": "scatter",
            "x": [x for x, _ in edge],
            "y": [y for _, y in edge],
            "mode": "lines",
            "line": {"shape": "hv", "color": "@muted", "width": 1.5, "dash": "dot"},
            "name": "Pareto front",
            "hoverinfo": "skip",
        }
    ]
    families = list(dict.fromkeys(entry["family"] for entry, _, _ in points))
    for family in sorted(families, key=_family_order):
        chosen = [point for point in points if point[0]["family"] == family]
        colour, symbol = f"@series-{_family_order(family)}", SYMBOLS[_family_order(family) % len(SYMBOLS)]
        traces.append(
            {
                "type": "scatter",
                "x": [x for _, x, _ in chosen],
                "y": [place("kl", found.value) for _, _, found in chosen],
                "mode": "markers",
                "name": names.get(family, family),
                "marker": {
                    "color": colour,
                    "size": [11 if entry["on_front"] else 8 for entry, _, _ in chosen],
                    "opacity": 1,
                    "symbol": [f"{symbol}-open" if entry["no_engine_because"] else symbol for entry, _, _ in chosen],
                    "line": {
                        "color": ["@ink" if entry["on_front"] else colour for entry, _, _ in chosen],
                        "width": 1.5,
                    },
                },
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [place("kl", found.high) - place("kl", found.value) for _, _, found in chosen],
                    "arrayminus": [place("kl", found.value) - place("kl", found.low) for _, _, found in chosen],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 0,
                },
                "text": [
                    f"{_hover(inputs.variants[entry['variant']], 'kl', found)}<br>{_on_disk(entry)}"
                    for entry, _, found in chosen
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "x": [100 * entry["size"] for entry, _, _ in points if entry["on_front"]],
            "y": [place("kl", found.value) for entry, _, found in points if entry["on_front"]],
            "mode": "text",
            "text": [f"{entry['variant']}\u00a0\u00a0\u00a0" for entry, _, _ in points if entry["on_front"]],
            "textposition": "bottom left",
            "textfont": {"size": 11, "color": "@muted"},
            "hoverinfo": "skip",
            "showlegend": False,
            "meta": "wide",
        }
    )
    before = lossless(inputs)
    if before:
        traces.append(
            {
                "type": "scatter",
                "x": [100 * before.share],
                "y": [place("kl", 0.0)],
                "mode": "markers",
                "marker": {"color": "@ink", "size": 10, "symbol": "x-thin", "line": {"color": "@ink", "width": 2}},
                "name": f"The base as {before.type}, without loss",
                "hovertemplate": f"the base as {before.type}: {before.bytes / 1e6:.1f} MB<extra></extra>",
            }
        )
    x_axis = {"title": {"text": "bytes on disk (% of the base's)"}, "zeroline": False}
    heights = [place("kl", end) for _, _, found in points for end in found[:3] if math.isfinite(end)] or [0.0, 1.0]
    layout = frame(x_axis, _value_axis("kl", heights, ticks=12))
    layout["yaxis"]["range"][0] -= 0.25
    return {"data": traces, "layout": layout}


def _on_disk(entry: dict[str, Any]) -> str:
    often = f"on the front in {100 * entry['probability']:.0f}\u00a0% of the resamples"
    size = f"{100 * entry['size']:.1f}\u00a0% on disk, {often}"
    if not entry["no_engine_because"]:
        return size
    return f"{size}<br>in theory {100 * entry['counted_size']:.1f}\u00a0%: {entry['no_engine_because']}"


def _family_order(family: str) -> int:
    order = list(FAMILIES)
    return order.index(family) if family in FAMILIES else len(order)


WIDE_COLUMNS = 8
"""The most columns of a heat map whose cells have room for a number."""


def heat(
    cells: dict[str, dict[str, Estimate | None]],
    columns: Sequence[str],
    title: str,
    shown_as: Callable[[Estimate], str],
    placed: Callable[[float], float],
    signed: bool = False,
) -> Figure:
    """Variants (rows) by ``columns``; white where nothing was measured.

    ``cells``: variant -> column -> estimate; ``placed`` puts a value on the colour's scale, ``shown_as`` writes it, the
    value before its interval, which stands in the cell too where columns are wide enough for it.
    Colours go from the page's ground up, and where ``signed`` from one colour over it to another.
    """
    known = {row: values for row, values in cells.items() if any(values.get(column) for column in columns)}
    z: list[list[float | None]] = []
    texts: list[list[str]] = []
    labels: list[list[str]] = []
    for row, values in known.items():
        found = [values.get(column) for column in columns]
        z.append([float(f"{placed(one.value):.4g}") if one else None for one in found])
        texts.append(
            [
                f"<b>{row}</b>, {column}<br>{title}: {shown_as(one)}" if one else ""
                for column, one in zip(columns, found, strict=True)
            ]
        )
        labels.append([shown_as(one).partition(" (")[0] if one else "" for one in found])
    heights = [value for line in z for value in line if value is not None] or [0.0]
    most = max(abs(value) for value in heights) or 1.0
    limits = {"zmin": -most, "zmax": most} if signed else {"zmin": min(0.0, *heights), "zmax": max(heights)}
    colours = [[0, "@series-1"], [0.5, "@band"], [1, "@series-0"]] if signed else [[0, "@band"], [1, "@series-1"]]
    trace = {
        "type": "heatmap",
        "x": list(columns),
        "y": list(known),
        "z": z,
        **limits,
        "colorscale": colours,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertext": texts,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    if len(columns) <= WIDE_COLUMNS:
        trace |= {"text": labels, "texttemplate": "%{text}"}
    y_axis = {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""}
    x_axis = {"type": "category", "title": {"text": title}, "showgrid": False, "ticks": "", "side": "top"}
    return {"data": [trace], "layout": frame(x_axis, y_axis)}


def side_by_side(names: Sequence[str], numbers: Sequence[Numbers], labels: Sequence[str], corpus: str) -> Figure:
    """A row per variant, with its KL in each of two studies."""
    traces: list[Figure] = []
    heights = [0.0]
    for turn, (of, label) in enumerate(zip(numbers, labels, strict=True)):
        known = [(row, name, of.get(name, "kl_mean", corpus)) for row, name in enumerate(names)]
        points = [(row, name, found) for row, name, found in known if found]
        heights += [place("kl", number) for _, _, found in points for number in found[:3] if math.isfinite(number)]
        colour = f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "x": [place("kl", found.value) for _, _, found in points],
                "y": [row + (turn - 0.5) * 0.3 for row, _, _ in points],
                "mode": "markers",
                "name": f"{'AB'[turn]}: {label}",
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn]},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [place("kl", found.high) - place("kl", found.value) for _, _, found in points],
                    "arrayminus": [place("kl", found.value) - place("kl", found.low) for _, _, found in points],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 0,
                },
                "text": [f"<b>{name}</b>, {label}<br>KL {shown('kl', found)}" for _, name, found in points],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    y_axis = {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [len(names) - 0.5, -0.5],
        "zeroline": False,
    }
    return {"data": traces, "layout": frame(_value_axis("kl", heights, ticks=7), y_axis)}


RECOVERY_FLOOR = -100.0
"""Recoveries (%) below are drawn here."""


def recoveries(
    groups: Mapping[tuple[str, bool], Sequence[tuple[float, Sequence[float], str]]], title: str, knee: bool
) -> Figure:
    """Recovery of mitigations against ``title``, controls as open symbols; a line at 1 where that is the ``knee``.

    ``groups``: arm and whether it is the control -> points: x, recovery with its low and high end, hover text.
    """
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    traces = []
    for (arm, control), points in groups.items():
        turn = arms.index(arm)
        heights = [[max(100 * number, RECOVERY_FLOOR) for number in found] for _, found, _ in points]
        symbol, colour = SYMBOLS[turn % len(SYMBOLS)], f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{arm}, control" if control else arm,
                "x": [x for x, _, _ in points],
                "y": [value for value, _, _ in heights],
                "marker": {"color": colour, "size": 9, "symbol": f"{symbol}-open" if control else symbol},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - value for value, _, high in heights],
                    "arrayminus": [value - low for value, low, _ in heights],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 0,
                },
                "text": [text for _, _, text in points],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    y_axis = {"title": {"text": "damage undone (%)"}, "range": [RECOVERY_FLOOR - 5, 105], "zeroline": False}
    layout = frame({"title": {"text": title}, "zeroline": False}, y_axis)
    layout["shapes"] = [_rule("y", 0.0, "dash"), *([_rule("x", 1.0, "dash")] if knee else [])]
    return {"data": traces, "layout": layout}
