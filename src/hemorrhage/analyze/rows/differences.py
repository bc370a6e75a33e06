"""What differs between the rows of two studies, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows.blocks import Blocks, paired_interval
from hemorrhage.analyze.rows.names import parse
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
"""Metric -> what people call it; those that a comparison shows first."""

KEYS = ["variant", "family", "method", "metric", "dataset"]
JOINED = [*KEYS, "conditions"]
"""What a number of two studies is the same by: metrics carry their protocol in their name, decoding's beside it."""


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
    """A number that only one side has, and why."""

    variant: str
    strategy: str
    metric: str
    dataset: str
    side: str
    estimate: float
    low: float
    high: float
    reason: str


def select_whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of whole models: not those of layers, heads and buckets of tokens."""
    whole = [name for name in rows["metric"].unique() if parse(name).is_whole]
    return rows[rows["metric"].isin(whole)]


def is_headline(metric: str) -> bool:
    """Tell whether a metric is one of those that a comparison shows first."""
    return strip_protocol(metric) in SHOWN


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
    """B minus A of all numbers of whole models that both have, the surest first; and what only one of them has.

    Numbers of two protocols never meet. ``blocks``: sums by window and group of both, where they are known.
    """
    compared, lost = [], []
    for row in join(a, b, blocks).itertuples(index=False):
        strategy = row.method if row.family == "decode" else ""
        if row.has_a and row.has_b:
            values = (row.estimate_a, row.estimate_b, row.difference, row.low, row.high, row.paired, row.certain)
            compared.append(Difference(row.variant, strategy, row.metric, row.dataset, *values))
        elif row.has_a or row.has_b:
            reason = (row.reason_b if row.has_a else row.reason_a) if row.side == "both" else "no such row"
            side = ("A", row.estimate_a, row.low_a, row.high_a)
            side = side if row.has_a else ("B", row.estimate_b, row.low_b, row.high_b)
            lost.append(Lost(row.variant, strategy, row.metric, row.dataset, *side, str(reason)))
    return sorted(compared, key=_sureness, reverse=True), lost


def join(a: pd.DataFrame, b: pd.DataFrame, blocks: tuple[Blocks, Blocks] = ({}, {})) -> pd.DataFrame:
    """Put the rows of whole models of two studies side by side: columns of theirs end in ``_a`` and ``_b``.

    Of its own it has ``has_a`` and ``has_b`` (a number is there), ``difference`` (B minus A) with ``low`` and ``high``,
    NaN where one lacks it, ``paired`` (block by block) and ``certain`` (the interval does not hold 0).
    """
    confidence = float(a.attrs.get("confidence", 0.95))
    first, second = (_with_conditions(select_whole(side)) for side in (a, b))
    both = first.merge(second, on=JOINED, how="outer", suffixes=("_a", "_b"), indicator="side")
    both["has_a"] = (both["side"] != "right_only") & (both["status_a"] == OK)
    both["has_b"] = (both["side"] != "left_only") & (both["status_b"] == OK)
    both["difference"] = (both["estimate_b"] - both["estimate_a"]).where(both["has_a"] & both["has_b"])
    bounds = [_bounds(row, blocks, confidence) for row in both.itertuples(index=False)]
    for column, name in enumerate(("low", "high", "paired")):
        both[name] = [bound[column] for bound in bounds]
    excluded = both["low"].isna() | ~((both["low"] <= 0) & (both["high"] >= 0))
    both["certain"] = both["difference"].notna() & (both["difference"] != 0) & excluded
    return both


def _with_conditions(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the protocol that the name of a decoding metric does not carry."""
    return rows.assign(conditions=rows["protocol"].where(rows["family"] == "decode", ""))


def _bounds(row: Any, blocks: tuple[Blocks, Blocks], confidence: float) -> tuple[float, float, bool]:
    """Low and high end of the difference of a row of both studies, and whether they are of the same blocks."""
    if not (row.has_a and row.has_b):
        return math.nan, math.nan, False
    same = row.data_a == row.data_b and row.protocol_a == row.protocol_b and row.n_a == row.n_b
    key = (row.variant, strip_protocol(row.metric), row.dataset)
    paired = paired_interval(*blocks, key, confidence) if same and row.family != "decode" else None
    if paired is not None:
        return *paired, True
    return *interval((row.estimate_a, row.low_a, row.high_a), (row.estimate_b, row.low_b, row.high_b)), False


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
