"""What differs between the rows of two studies, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows.blocks import Blocks, paired_interval
from hemorrhage.analyze.rows.schema import OK

SHOWN = {
    "kl_mean": "KL, nats per token",
    "ln_perplexity_ratio": "ln of perplexity over the base's",
    "same_top1": "same top-1 as the base",
    "mean_accuracy": "mean accuracy",
    "mean_flips": "answers that flip",
    "accuracy": "accuracy",
    "disk_bytes": "bytes on disk",
    "effective_bits": "bits per parameter",
    "spread": "decoding spread",
}
"""Metric -> what people call it; those that a comparison shows."""

KEYS = ["variant", "family", "method", "metric", "dataset"]


class Difference(NamedTuple):
    """B minus A of one number. ``low`` and ``high`` are NaN where both are exact; ``paired``: block by block, of the
    same windows or items; ``certain``: the interval does not hold 0."""

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
    """Select the rows that a comparison shows: of whole models, not of layers, heads and buckets of tokens."""
    return rows[rows["metric"].map(strip_protocol).isin(SHOWN)]


def interval(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of b - a from two (estimate, low, high): the method of variance estimates recovery.

    Each limit takes the halves of both intervals that point its way (Donner and Zou, Statistical Methods in Medical
    Research 2012 21:347, for independent estimates). Where two estimates vary together the interval is too wide, where
    they vary against each other too narrow: the same windows and items are compared block by block instead. A number
    without an interval is exact.
    """
    (first, low1, high1), (second, low2, high2) = a, b
    down1, up1, down2, up2 = (
        0.0 if math.isnan(half) else half for half in (first - low1, high1 - first, second - low2, high2 - second)
    )
    if all(math.isnan(end) for end in (low1, high1, low2, high2)):
        return math.nan, math.nan
    difference = second - first
    return difference - math.hypot(down2, up1), difference + math.hypot(up2, down1)


def differences(
    a: pd.DataFrame, b: pd.DataFrame, blocks: tuple[Blocks, Blocks] = ({}, {})
) -> tuple[list[Difference], list[Lost]]:
    """B minus A of all shown numbers that both have, the surest first; and what only one of them has.

    Metrics carry their protocol in their name, and decoding's are joined by their protocol, so that numbers of two
    protocols never meet. ``blocks``: sums by window and group of both, where they are known.
    """
    confidence = float(a.attrs.get("confidence", 0.95))
    first, second = (_with_conditions(select_shown(side)) for side in (a, b))
    both = first.merge(second, on=[*KEYS, "conditions"], how="outer", suffixes=("_a", "_b"), indicator="side")
    compared, lost = [], []
    for row in both.itertuples(index=False):
        has_a = row.side in ("both", "left_only") and row.status_a == OK
        has_b = row.side in ("both", "right_only") and row.status_b == OK
        if has_a and has_b:
            compared.append(_difference(row, blocks, confidence))
        elif has_a or has_b:
            reason = (row.reason_b if has_a else row.reason_a) if row.side == "both" else "no such row"
            lost.append(Lost(row.variant, row.metric, row.dataset, "A" if has_a else "B", str(reason)))
    return sorted(compared, key=_sureness, reverse=True), lost


def _with_conditions(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the protocol that the name of a decoding metric does not carry."""
    return rows.assign(conditions=rows["protocol"].where(rows["family"] == "decode", ""))


def _difference(row: Any, blocks: tuple[Blocks, Blocks], confidence: float) -> Difference:
    """B minus A of a row of both studies, joined."""
    low, high = interval((row.estimate_a, row.low_a, row.high_a), (row.estimate_b, row.low_b, row.high_b))
    difference = row.estimate_b - row.estimate_a
    same = row.data_a == row.data_b and row.protocol_a == row.protocol_b and row.n_a == row.n_b
    key = (row.variant, strip_protocol(row.metric), row.dataset)
    paired = paired_interval(*blocks, key, confidence) if same and row.family != "decode" else None
    low, high = (low, high) if paired is None else paired
    return Difference(
        variant=row.variant,
        strategy=row.method if row.family == "decode" else "",
        metric=row.metric,
        dataset=row.dataset,
        a=row.estimate_a,
        b=row.estimate_b,
        difference=difference,
        low=low,
        high=high,
        paired=paired is not None,
        certain=bool(difference != 0 and (math.isnan(low) or not low <= 0 <= high)),
    )


def _sureness(compared: Difference) -> tuple[bool, float]:
    half = (compared.high - compared.low) / 2
    if half > 0:
        return compared.certain, abs(compared.difference) / half
    return compared.certain, math.inf if compared.difference else 0.0


def flatten(content: Any, prefix: str = "") -> Mapping[str, Any]:
    """Flatten nested mappings to ``a.b`` -> value; lists are values."""
    if not isinstance(content, dict):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def list_changes(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """List (key, value in A, value in B) of what two nested mappings don't share; None where one lacks it."""
    first, second = flatten(a), flatten(b)
    return [
        (key, first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
