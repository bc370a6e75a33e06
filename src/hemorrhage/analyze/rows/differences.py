"""What differs between the rows of two studies, with intervals."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.protocol import strip_protocol

SHOWN = {
    "kl_mean": "KL, nats per token",
    "ln_perplexity_ratio": "ln of perplexity over the base's",
    "same_top1": "same top-1 as the base",
    "mean_accuracy": "mean accuracy",
    "mean_flips": "answers that flip",
    "accuracy": "accuracy",
    "disk_bytes": "bytes on disk",
    "effective_bits": "bits per parameter",
    "spread_over_max": "decoding spread",
}
"""Metric -> what people call it; those that a comparison shows."""

KEYS = ["variant", "family", "method", "metric", "dataset"]


class Difference(NamedTuple):
    """B minus A of one number. ``low`` and ``high`` are NaN where both are exact; ``paired``: on the same data under
    the same protocol; ``certain``: the interval does not hold 0."""

    variant: str
    strategy: str
    metric: str
    dataset: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    paired: bool
    certain: bool


class Lost(NamedTuple):
    """A row that only one side has a number for, and why."""

    variant: str
    metric: str
    dataset: str
    side: str
    reason: str


def select_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that a comparison shows: of whole models, not of layers, heads and kinds of tokens."""
    return rows[rows["metric"].map(strip_protocol).isin(SHOWN)]


def interval(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of b - a from two (estimate, low, high): the method of variance estimates recovery.

    Each limit takes the halves of both intervals that point its way (Donner and Zou, Statistical Methods in Medical
    Research 2012 21:347, for independent estimates). On the same windows or items two estimates vary together, and the
    interval is then wider than it had to be, never narrower. A number without an interval is exact.
    """
    (first, low1, high1), (second, low2, high2) = a, b
    down1, up1, down2, up2 = (
        0.0 if math.isnan(part) else part for part in (first - low1, high1 - first, second - low2, high2 - second)
    )
    if all(math.isnan(part) for part in (low1, high1, low2, high2)):
        return math.nan, math.nan
    difference = second - first
    return difference - math.hypot(down2, up1), difference + math.hypot(up2, down1)


def differences(a: pd.DataFrame, b: pd.DataFrame) -> tuple[list[Difference], list[Lost]]:
    """B minus A of all shown numbers that both have, the surest first; and what only one of them has.

    Metrics carry their protocol in their name, so that numbers of two protocols never meet.
    """
    both = select_shown(a).merge(select_shown(b), on=KEYS, how="outer", suffixes=("_a", "_b"), indicator=True)
    found, lost = [], []
    for row in both.to_dict("records"):
        measured = [row["_merge"] in ("both", side) and row[f"status_{end}"] == "ok" for side, end in
                    (("left_only", "a"), ("right_only", "b"))]  # fmt: skip
        if all(measured):
            found.append(_difference(row))
        elif any(measured):
            end = "b" if measured[0] else "a"
            reason = row[f"reason_{end}"] if row["_merge"] == "both" else "no such row"
            lost.append(Lost(row["variant"], row["metric"], row["dataset"], "A" if measured[0] else "B", str(reason)))
    return sorted(found, key=_sureness, reverse=True), lost


def _difference(row: dict[str, Any]) -> Difference:
    first, second = ((row[f"estimate_{end}"], row[f"low_{end}"], row[f"high_{end}"]) for end in "ab")
    low, high = interval(first, second)
    difference = second[0] - first[0]
    certain = difference != 0 and (math.isnan(low) or not low <= 0 <= high)
    paired = all(row[f"{key}_a"] == row[f"{key}_b"] for key in ("data", "protocol", "n"))
    strategy = row["method"] if row["family"] == "decode" else ""
    names = (row["variant"], strategy, row["metric"], row["dataset"])
    return Difference(*names, first[0], second[0], difference, low, high, paired, certain)


def _sureness(one: Difference) -> tuple[bool, float]:
    half = (one.high - one.low) / 2
    return one.certain, abs(one.difference) / half if half > 0 else (math.inf if one.difference else 0.0)


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``a.b`` -> value; lists are values."""
    if not isinstance(content, dict):
        return {prefix: content}
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def list_changes(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(key, value in A, value in B) of what two nested mappings don't share; None where one lacks it."""
    first, second = flatten(a), flatten(b)
    return [
        (key, first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
