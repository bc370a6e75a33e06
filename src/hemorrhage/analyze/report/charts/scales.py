"""The scales of damage: their axes, and how a value is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hemorrhage.analyze.report.charts.plotly import Json
from hemorrhage.analyze.rows.tables import Estimate


@dataclass(frozen=True)
class Scale:
    """A metric on an axis: ``name`` on a button, ``title`` on the axis."""

    metric: str
    name: str
    title: str


SCALES = {
    "kl": Scale("kl_mean", "KL", "KL to the base (nats per token)"),
    "factor": Scale("ln_perplexity_ratio", "Perplexity", "perplexity, times the base's"),
    "top1": Scale("same_top1", "Top-1 agreement", "same top-1 token as the base (%)"),
    "accuracy": Scale("mean_accuracy", "Task accuracy", "mean accuracy over tasks (%)"),
}
"""Key of a scale -> what the damage charts show on it, the default first."""

LINEAR_BELOW = 0.001
"""KL (nats) below which its axis is linear; above, it is logarithmic. A logarithmic axis alone would drop the
base model and whatever equals it, a linear one would hide small damage next to a collapse."""

FACTOR_TICKS = (1, 10, 100, 1e3, 1e4, 1e6, 1e8, 2, 0.5, 30, 300, 1.1, 4, 1.3, 1.03, 0.9, 1.01, 1.05, 1.6, 3, 1.2)
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
"""Ticks, the ones wanted most first: those too close to others are left out."""


LIMITS = {"kl": "kl", "factor": "perplexity"}
"""Key of a scale -> key of the budget that limits what it shows."""


def budget_coordinate(scale: str, budget: Mapping[str, float]) -> float | None:
    """Return where the limit of a budget lies on the axis of a scale; None where it has none."""
    limit = budget.get(LIMITS.get(scale, ""))
    if limit is None:
        return None
    return math.log(limit) if scale == "factor" else coordinate(scale, limit)


def kl_coordinate(value: float) -> float:
    """Return the coordinate of a KL on its axis, linear below LINEAR_BELOW and logarithmic above."""
    return math.asinh(value / LINEAR_BELOW)


def coordinate(scale: str, value: float) -> float:
    """Return the coordinate of a metric's value on the axis of a scale; a log-perplexity ratio is its own."""
    if scale == "factor":
        return value
    return kl_coordinate(value) if scale == "kl" else 100 * value


def coordinates(scale: str, estimate: Estimate) -> tuple[float, float, float]:
    """Return where the value, its low and its high end are on the axis of a scale."""
    value, low, high = (coordinate(scale, number) for number in estimate[:3])
    return value, low, high


def written(scale: str, estimate: Estimate) -> str:
    """Write a value with its interval."""
    if scale == "factor":
        texts = [factor(number) for number in estimate[:3]]
    elif scale == "kl":
        texts = [f"{number:.2g}" if number else "0" for number in estimate[:3]]
    else:
        texts = [f"{100 * number:.1f}" for number in estimate[:3]]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def factor(ln_ratio: float) -> str:
    """Write a log-perplexity ratio as ×1.23."""
    ratio = math.exp(min(ln_ratio, 700.0))
    if ratio >= 1e6:
        mantissa, exponent = f"{ratio:.1e}".split("e")
        return f"×{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}"
    if ratio >= 100:
        return f"×{ratio:,.0f}"
    return f"×{ratio:.3g}" if ratio >= 10 else f"×{ratio:.2f}" if ratio >= 1.1 else f"×{ratio:.3f}"


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def value_axis(scale: str, extent: Sequence[float], ticks: int) -> Json:
    """Return the axis of a metric over an extent of coordinates, with at most about ``ticks`` ticks."""
    low, high = min(extent), max(extent)
    pad = 0.06 * (high - low or 1.0)
    axis: Json = {"title": {"text": SCALES[scale].title}, "range": [low - pad, high + pad], "zeroline": False}
    if scale in ("factor", "kl"):
        values, texts = _ticks(scale, low - pad, high + pad, ticks)
        axis |= {"tickvals": values, "ticktext": texts}
    return axis


def _ticks(scale: str, low: float, high: float, most: int) -> tuple[list[float], list[str]]:
    sign, ticks = ("×", FACTOR_TICKS) if scale == "factor" else ("", KL_TICKS)
    chosen: dict[float, str] = {}
    for tick in ticks:
        value = math.log(tick) if scale == "factor" else kl_coordinate(tick)
        if low <= value <= high and all(abs(value - other) > (high - low) / most for other in chosen):
            chosen[value] = _short(tick, sign)
    return list(chosen), list(chosen.values())


def _short(value: float, sign: str) -> str:
    if value >= 1e4:
        return f"{sign}10<sup>{round(math.log10(value))}</sup>"
    return f"{sign}{value:g}"
