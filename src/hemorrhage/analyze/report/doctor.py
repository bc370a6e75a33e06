"""The doctor's section of the page: the figure of predicted against observed damage, and its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hemorrhage.analyze.doctor.doctor import BY_METHOD, BY_MODEL, Doctor
from hemorrhage.analyze.doctor.laws import CAP, FLOOR

STAGES = {
    BY_MODEL: ("other models alone", "@series-0", "circle"),
    BY_METHOD: ("this model's other methods, too", "@series-1", "diamond"),
}
"""What took no part in a prediction -> what it was made from, colour and symbol."""

LAWS = {
    "published": "quantization law of 2411.17691, as published",
    "quantization": "the same law, refitted",
    "precision": "precision law of 2411.04330, refitted",
    "quadratic": "quadratic law of 2504.04342, refitted",
    "together": "the refitted laws, and medians where none speaks",
}

TARGET = "kl_mean"


def figures(doctor: Doctor, corpora: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Key of the page -> the figure of one corpus."""
    return {f"doctor|{corpus}": _figure(doctor, corpus) for corpus in corpora} if doctor.left_out else {}


def _figure(doctor: Doctor, corpus: str) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "type": "log",
        "range": [math.log10(FLOOR) - 0.1, math.log10(CAP) + 0.1],
        "tickvals": [0.001, 0.01, 0.1, 1, 5],
        "ticktext": ["0.001", "0.01", "0.1", "1", "5"],
        "gridcolor": "@grid",
        "color": "@muted",
        "zeroline": False,
        "fixedrange": True,
    }
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "x": [FLOOR, CAP],
            "y": [FLOOR, CAP],
            "mode": "lines",
            "line": {"color": "@muted", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    for each in doctor.left_out[TARGET]:
        rows = each.rows[each.rows["corpus"] == corpus] if len(each.rows) else each.rows
        name, colour, symbol = STAGES[each.by]
        records = rows.to_dict("records")
        traces.append(
            {
                "type": "scatter",
                "x": [row["observed"] for row in records],
                "y": [row["predicted"] for row in records],
                "mode": "markers",
                "name": name,
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [row["high"] - row["predicted"] for row in records],
                    "arrayminus": [row["predicted"] - row["low"] for row in records],
                    "color": colour,
                    "thickness": 1,
                    "width": 0,
                },
                "text": [
                    f"<b>{row['variant']}</b><br>KL {row['observed']:.2g}, foretold {_ranged(row)}" for row in records
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {**axis, "title": {"text": "observed KL, nats per token"}},
        "yaxis": {**axis, "title": {"text": "foretold KL"}},
        "margin": {"l": 60, "r": 16, "t": 10, "b": 56},
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "font": {"color": "@ink"},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}


def _ranged(row: dict[str, Any]) -> str:
    return f"{row['predicted']:.2g} ({row['low']:.2g} to {row['high']:.2g})"


def errors(doctor: Doctor) -> list[dict[str, str]]:
    """Rows of the table of errors: of the logarithm of the perplexity ratio, beside each law."""
    return [
        {
            "of": one["of"],
            "left_out": f"every {one['left_out']} in turn" if one["of"] == "all models" else f"its {one['left_out']}",
            "law": LAWS[one["law"]],
            "rows": str(one["rows"]),
            "error": f"{one['error']:.3f}",
            "law_error": f"{one['law_error']:.3f}",
            "factor": f"{math.exp(one['ln_error']):.1f}",
            "law_factor": f"{math.exp(one['law_ln_error']):.1f}",
            "coverage": f"{100 * one['coverage']:.0f}",
        }
        for one in doctor.scores
        if one["target"] == "ln_perplexity_ratio"
    ]


def predicted(doctor: Doctor) -> list[dict[str, Any]]:
    """Rows of the table of predictions: a variant on a corpus, by both stages."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in doctor.left_out.get(TARGET, []):
        for row in each.rows.to_dict("records"):
            entry = found.setdefault(
                (row["variant"], row["corpus"]),
                {"variant": row["variant"], "corpus": row["corpus"], "observed": f"{row['observed']:.3g}"},
            )
            entry[each.by] = {
                "text": f"{row['predicted']:.3g}",
                "range": f"{row['low']:.2g} to {row['high']:.2g}",
                "outside": not row["low"] <= row["observed"] <= row["high"],
            }
    return list(found.values())
