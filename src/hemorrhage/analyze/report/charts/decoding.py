"""Charts of the decoding sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.report.charts.heatmap import Colours, heatmap
from hemorrhage.analyze.report.charts.plotly import DASHES, HOVER, SYMBOLS, Figure, Json, frame, interval_bars
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.survival import Survival
from hemorrhage.analyze.rows.tables import Estimate, Numbers


class Metric(NamedTuple):
    """A metric of texts: ``name`` on a button, ``title`` on an axis, and the factor that it is shown with."""

    name: str
    title: str
    times: int = 100


METRICS = {
    "accuracy": Metric("Accuracy", "accuracy (%)"),
    "strict_accuracy": Metric("Strict accuracy", "accuracy of answers in the task's own form (%)"),
    "uncommitted": Metric("Not committed", "texts that hold the right answer and give another (%)"),
    "truncated": Metric("Truncated", "texts that the limit of tokens ends (%)"),
    "rep_4": Metric("Repetition", "rep-4: 4-grams that repeat (%)"),
    "loop_rate": Metric("Loops", "texts that end in a loop (%)"),
    "base_nll": Metric("Base-model NLL", "NLL under the base model (nats per token)", 1),
    "mauve": Metric("MAUVE", "MAUVE against human texts (%)"),
    "distinct_2": Metric("Distinct-2", "distinct-2: different 2-grams (%)"),
    "distinct_3": Metric("Distinct-3", "distinct-3: different 3-grams (%)"),
    "entropy": Metric("Entropy", "entropy of a text's tokens (nats)", 1),
    "length": Metric("Length", "length (tokens)", 1),
    "rouge1": Metric("ROUGE-1", "ROUGE-1 (%)"),
    "rouge2": Metric("ROUGE-2", "ROUGE-2 (%)"),
    "rougeL": Metric("ROUGE-L", "ROUGE-L (%)"),
}
"""What the charts can show."""


def dots(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """Draw a row per strategy, a dot with its interval per variant."""
    strategies, variants = numbers.strategies(metric), numbers.decoded_variants()
    times = METRICS[metric].times
    traces: list[Json] = []
    for turn, variant in enumerate(variants):
        offset = (turn - (len(variants) - 1) / 2) * 0.7 / max(len(variants), 1)
        places: list[list[float]] = []
        y, texts = [], []
        for row, strategy in enumerate(strategies):
            estimate = numbers.get(variant, metric, dataset, strategy)
            if estimate:
                value, low, high = (times * number for number in estimate[:3])
                places.append([value, low, high])
                y.append(row + offset)
                interval = f"{value:.3g} ({low:.3g} to {high:.3g})"
                texts.append(f"<b>{variant}</b>, {strategy}<br>{interval}, {estimate.n} texts")
        colour = f"@series-{turn}"
        traces.append(
            {
                "type": "scatter",
                "x": [value for value, _, _ in places],
                "y": y,
                "mode": "markers",
                "name": variant,
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
                "error_x": interval_bars(places, colour),
                "text": texts,
                "hovertemplate": HOVER,
            }
        )
    y_axis = {
        "tickvals": list(range(len(strategies))),
        "ticktext": strategies,
        "range": [len(strategies) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
    }
    layout = frame({"title": {"text": METRICS[metric].title}, "zeroline": False}, y_axis)
    layout["shapes"] = [_stripe(row) for row in range(0, len(strategies), 2)]
    return {"data": traces, "layout": layout}


def _stripe(row: int) -> Json:
    """Return the ground of a row."""
    return {
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


def strategy_map(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """Draw strategies (rows) by variants (columns)."""
    variants = numbers.decoded_variants()
    cells = _cells(numbers, metric, dataset, variants)

    def written(estimate: Estimate) -> str:
        value, low, high = (METRICS[metric].times * number for number in estimate[:3])
        return f"{value:.3g} ({low:.3g} to {high:.3g})"

    return heatmap(cells, variants, METRICS[metric].title, written)


def interactions(numbers: Numbers, metric: str, dataset: str) -> Figure:
    """Draw how much more or less compression costs a strategy than the mean one: strategies by variants, signed."""
    name = f"{metric}_interaction"
    variants = [
        variant
        for variant in numbers.decoded_variants()
        if any(numbers.get(variant, name, dataset, strategy) for strategy in numbers.strategies(name))
    ]
    cells = _cells(numbers, name, dataset, variants)

    def written(estimate: Estimate) -> str:
        value, low, high = (METRICS[metric].times * number for number in estimate[:3])
        return f"{value:+.3g} ({low:+.3g} to {high:+.3g}), p {estimate.p:.2g}, q {estimate.q:.2g}"

    return heatmap(cells, variants, METRICS[metric].title, written, Colours(signed=True))


def _cells(
    numbers: Numbers, metric: str, dataset: str, variants: Sequence[str]
) -> dict[str, dict[str, Estimate | None]]:
    """Return strategy -> variant -> the estimate of a metric on a data set."""
    return {
        strategy: {variant: numbers.get(variant, metric, dataset, strategy) for variant in variants}
        for strategy in numbers.strategies(metric)
    }


def survival_curves(curves: Mapping[str, Survival]) -> Figure:
    """Draw the share of greedy texts that still agree with the base's, by tokens: steps with their intervals."""
    traces: list[Json] = []
    for turn, (variant, curve) in enumerate(curves.items()):
        colour = f"@series-{turn}"
        x = [int(tokens) for tokens in curve.at]
        low, high = (
            [None if np.isnan(value) else 100 * float(value) for value in side] for side in (curve.low, curve.high)
        )
        bounded = [index for index, value in enumerate(low) if value is not None]
        if bounded:
            band = {
                "type": "scatter",
                "x": [x[index] for index in bounded],
                "mode": "lines",
                "line": {"width": 0, "shape": "hv"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            traces.append({**band, "y": [low[index] for index in bounded]})
            fill = {"fill": "tonexty", "fillcolor": f"{colour}/0.12"}
            traces.append({**band, "y": [high[index] for index in bounded], **fill})
        traces.append(
            {
                "type": "scatter",
                "x": x,
                "y": [100 * float(share) for share in curve.share],
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
    y_axis = {"title": {"text": "texts that agree with the base's (%)"}, "range": [-2, 102], "zeroline": False}
    return {"data": traces, "layout": frame(x_axis, y_axis)}


def answer_costs(numbers: Numbers, metric: str, dataset: str, strategy: str) -> Figure:
    """Draw a metric under one strategy against what an answer costs in bytes, over the base's, a dot a variant."""
    times = METRICS[metric].times
    traces: list[Json] = []
    for turn, variant in enumerate(numbers.decoded_variants()):
        quality = numbers.get(variant, metric, dataset, strategy)
        cost = numbers.get(variant, "bytes_ratio", dataset, ALL_STRATEGIES)
        if quality is None or (cost is None and variant != BASE):
            continue
        x, low, high = (1.0, 1.0, 1.0) if cost is None else cost[:3]
        value, least, most = (times * number for number in quality[:3])
        colour = f"@series-{turn}"
        written = f"{value:.3g} ({least:.3g} to {most:.3g}) at {x:.2f} ({low:.2f} to {high:.2f}) times the bytes"
        traces.append(
            {
                "type": "scatter",
                "x": [x],
                "y": [value],
                "mode": "markers",
                "name": variant,
                "marker": {"color": colour, "size": 10, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
                "error_x": interval_bars([(x, low, high)], colour),
                "error_y": interval_bars([(value, least, most)], colour),
                "text": [f"<b>{variant}</b><br>{written}"],
                "hovertemplate": HOVER,
            }
        )
    x_axis = {"title": {"text": "bytes read for an answer, over the base's"}, "zeroline": False, "rangemode": "tozero"}
    return {"data": traces, "layout": frame(x_axis, {"title": {"text": METRICS[metric].title}, "zeroline": False})}
