"""Charts of the decoding sweep, as plotly.js figures like those of hemorrhage.analyze.report.figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hemorrhage.analyze.report.figures import DASHES, SYMBOLS, Figure, frame, heat
from hemorrhage.analyze.rows.survival import Survival
from hemorrhage.analyze.rows.tables import Estimate, Numbers

AXES = {
    "accuracy": "accuracy (%)",
    "rep_4": "rep-4: 4-grams that repeat (%)",
    "loop_rate": "texts that end in a loop (%)",
    "base_nll": "surprise of the base model (nats per token)",
    "mauve": "MAUVE against what people wrote (%)",
    "distinct_2": "distinct-2: different 2-grams (%)",
    "distinct_3": "distinct-3: different 3-grams (%)",
    "entropy": "entropy of a text's tokens (nats)",
    "length": "length (tokens)",
    "rouge1": "ROUGE-1 (%)",
    "rouge2": "ROUGE-2 (%)",
    "rougeL": "ROUGE-L (%)",
}
"""What the charts can show."""

WHOLE = ("base_nll", "length", "entropy")
"""Metrics that are no shares."""


def times(metric: str) -> int:
    """What a metric is multiplied by to be shown."""
    return 1 if metric in WHOLE else 100


def decoding(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """A row per strategy, a dot with its interval per variant."""
    strategies, variants = numbers.strategies(metric), numbers.decoded_variants()
    traces = []
    for turn, variant in enumerate(variants):
        offset = (turn - (len(variants) - 1) / 2) * 0.7 / max(len(variants), 1)
        x, y, plus, minus, texts = [], [], [], [], []
        for row, strategy in enumerate(strategies):
            found = numbers.get(variant, metric, dataset, strategy)
            if found:
                value, low, high = (times(metric) * number for number in found[:3])
                x.append(value)
                y.append(row + offset)
                plus.append(None if np.isnan(high) else high - value)
                minus.append(None if np.isnan(low) else value - low)
                texts.append(f"<b>{variant}</b>, {strategy}<br>{value:.3g} ({low:.3g} to {high:.3g}), {found.n} texts")
        colour = f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "x": x,
                "y": y,
                "mode": "markers",
                "name": variant,
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": plus,
                    "arrayminus": minus,
                    "color": colour,
                    "thickness": 1.2,
                    "width": 0,
                },
                "text": texts,
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    y_axis = {
        "tickvals": list(range(len(strategies))),
        "ticktext": strategies,
        "range": [len(strategies) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
    }
    layout = frame({"title": {"text": AXES[metric]}, "zeroline": False}, y_axis)
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": row - 0.5,
            "y1": row + 0.5,
            "fillcolor": "@band",
            "line": {"width": 0},
            "layer": "below",
        }
        for row in range(0, len(strategies), 2)
    ]
    return {"data": traces, "layout": layout}


def grid(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """Strategies (rows) by variants (columns)."""
    variants = numbers.decoded_variants()
    cells: dict[str, dict[str, Estimate | None]] = {
        strategy: {variant: numbers.get(variant, metric, dataset, strategy) for variant in variants}
        for strategy in numbers.strategies(metric)
    }

    def shown(found: Estimate) -> str:
        value, low, high = (times(metric) * number for number in found[:3])
        return f"{value:.3g} ({low:.3g} to {high:.3g})"

    return heat(cells, variants, AXES[metric], shown, float)


def interactions(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """What compression costs or spares a strategy more than the mean one: strategies by variants, signed."""
    name = f"{metric}_interaction"
    variants = [
        variant
        for variant in numbers.decoded_variants()
        if any(numbers.get(variant, name, dataset, strategy) for strategy in numbers.strategies(name))
    ]
    cells: dict[str, dict[str, Estimate | None]] = {
        strategy: {variant: numbers.get(variant, name, dataset, strategy) for variant in variants}
        for strategy in numbers.strategies(name)
    }

    def shown(found: Estimate) -> str:
        value, low, high = (times(metric) * number for number in found[:3])
        return f"{value:+.3g} ({low:+.3g} to {high:+.3g}), p {found.p:.2g}, q {found.q:.2g}"

    return heat(cells, variants, AXES[metric], shown, float, signed=True)


def survival(curves: Mapping[str, Survival]) -> Figure:
    """Share of greedy texts that are still the base's, by tokens: steps with their intervals."""
    traces: list[Figure] = []
    for turn, (variant, found) in enumerate(curves.items()):
        colour = f"@series-{turn}"
        x = [int(at) for at in found.at]
        low, high = (
            [None if np.isnan(value) else 100 * float(value) for value in side] for side in (found.low, found.high)
        )
        known = [place for place, value in enumerate(low) if value is not None]
        if known:
            band = {
                "type": "scatter",
                "x": [x[place] for place in known],
                "mode": "lines",
                "line": {"width": 0, "shape": "hv"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            traces.append({**band, "y": [low[place] for place in known]})
            fill = {"fill": "tonexty", "fillcolor": f"{colour}/0.12"}
            traces.append({**band, "y": [high[place] for place in known], **fill})
        traces.append(
            {
                "type": "scatter",
                "x": x,
                "y": [100 * float(share) for share in found.share],
                "mode": "lines",
                "name": variant,
                "line": {"color": colour, "shape": "hv", "dash": DASHES[turn % len(DASHES)], "width": 2},
                "hovertemplate": f"<b>{variant}</b><br>%{{y:.0f}} % agree after %{{x}} tokens<extra></extra>",
            }
        )
    last = max((int(curve.at[-1]) for curve in curves.values()), default=0)
    # Tokens are whole: on a short axis, plotly would mark halves.
    whole = {"dtick": 1} if last <= 10 else {}
    x_axis = {"title": {"text": "tokens generated"}, "zeroline": False, "rangemode": "tozero", **whole}
    y_axis = {"title": {"text": "texts that are the base's (%)"}, "range": [-2, 102], "zeroline": False}
    return {"data": traces, "layout": frame(x_axis, y_axis)}
