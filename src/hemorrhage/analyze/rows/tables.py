"""The results by variant: lookup, headline metrics for DVC, tables for DVC plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.axes import failure, position, sweeps
from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.protocol import strip_protocol, tag
from hemorrhage.analyze.rows.decoding import ALL_STRATEGIES, DECODE, MAUVE, OPEN_METRICS, ROUGE
from hemorrhage.analyze.rows.tasks import ALL_TASKS, Suite
from hemorrhage.analyze.stored import Json

DIGITS = 6
"""Significant digits of everything that version control compares."""


class Estimate(NamedTuple):
    """A number with its interval (NaN where it is exact), the blocks it rests on, its test, and its whole name."""

    value: float
    low: float
    high: float
    n: int
    p: float
    q: float
    mde: float
    metric: str
    protocol: str


class Numbers:
    """Estimates by variant, metric (without protocol), data set and, for decoding, strategy."""

    def __init__(self, rows: pd.DataFrame) -> None:
        ok = rows[rows["status"] == "ok"]
        self._found: dict[tuple[str, str, str, str], Estimate] = {}
        keys = ["variant", "dataset", "family", "method"]
        numbers = ["estimate", "low", "high", "n", "p", "q", "mde", "metric", "protocol"]
        # Column by column: strings of Arrow are slow one by one.
        columns = [ok[name].to_numpy(object).tolist() for name in keys + numbers]
        for variant, dataset, family, method, *found in zip(*columns, strict=True):
            strategy, estimate = method if family == DECODE else "", Estimate(*found)
            self._found[variant, strip_protocol(estimate.metric), dataset, strategy] = estimate
        self._places: dict[str, dict[tuple[str, str], None]] = {}
        """By metric, the data sets and strategies it was measured on, in their order."""
        for _, metric, *place in self._found:
            self._places.setdefault(metric, {})[place[0], place[1]] = None

    def get(self, variant: str, metric: str, dataset: str = "", strategy: str = "") -> Estimate | None:
        """The estimate, or None where there is none."""
        return self._found.get((variant, metric, dataset, strategy))

    def datasets(self, metric: str, strategy: bool = False) -> list[str]:
        """Data sets that a metric was measured on, in their order."""
        places = self._places.get(metric, {})
        return list(dict.fromkeys(dataset for dataset, name in places if bool(name) == strategy))

    def strategies(self, metric: str) -> list[str]:
        """Decoding strategies that a metric was measured for, in their order."""
        places = self._places.get(metric, {})
        return list(dict.fromkeys(name for _, name in places if name not in ("", ALL_STRATEGIES)))

    def decoded_variants(self) -> list[str]:
        """Variants with decoding results, in their order."""
        return list(dict.fromkeys(key[0] for key in self._found if key[3]))


def round_digits(value: float) -> float:
    """``value`` to six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def headline(
    inputs: Inputs,
    numbers: Numbers,
    corpora: list[str],
    suites: Sequence[Suite],
    inside: int,
    ship: Mapping[str, Json],
) -> dict[str, Any]:
    """The content of metrics.json: nothing that is not a result, so that equal results give equal bytes.

    ``inside``: the number of variants inside the budget; ``ship``: the recommended sizes.
    A key says under which protocol, or over which tasks, so that two commits are compared only where they agree.
    """
    tasks = "+".join(next((suite.averaged_tasks for suite in suites if suite.name == ALL_TASKS), []))
    found: dict[str, Any] = {}
    for variant in inputs.variants:
        fields: dict[str, Any] = {}
        for metric in ("perplexity", "ln_perplexity_ratio", "kl_mean", "same_top1"):
            for corpus in corpora:
                estimate = numbers.get(variant, metric, corpus)
                if estimate:
                    fields.setdefault(estimate.metric, {})[corpus] = round_digits(estimate.value)
        for metric, dataset in (
            ("mean_accuracy", ALL_TASKS),
            ("mean_flips", ALL_TASKS),
            ("effective_bits", ""),
            ("size_ratio", ""),
        ):
            estimate = numbers.get(variant, metric, dataset)
            if estimate:
                fields[f"{metric}[{tasks}]" if dataset else metric] = round_digits(estimate.value)
        for dataset in numbers.datasets("spread_over_max", strategy=True):
            spread = numbers.get(variant, "spread_over_max", dataset, ALL_STRATEGIES)
            if spread:
                fields[f"decoding_spread[{dataset}]"] = round_digits(spread.value)
        if fields:
            found[variant] = fields
    failed = sum(failure(inputs, variant) is not None for variant in inputs.variants.values())
    return {
        "variants": found,
        "counts": {"variants": len(inputs.variants) - 1, "failed": failed, "inside_budget": inside},
        "ship": ship,
    }


def curve_points(inputs: Inputs, numbers: Numbers, corpora: list[str]) -> pd.DataFrame:
    """The content of curves.csv: a row per measured variant and corpus, for DVC plots."""
    rows = []
    for sweep in sweeps(inputs):
        for variant in sweep.variants:
            for corpus in corpora:
                ratio = numbers.get(variant.name, "ln_perplexity_ratio", corpus)
                if ratio is None:
                    continue
                row = {
                    "family": sweep.family,
                    "curve": sweep.name,
                    "variant": variant.name,
                    "corpus": corpus,
                    "protocol": tag(ratio.protocol),
                    "axis": sweep.axis,
                    "severity": variant.severity,
                    "position": position(variant),
                }
                for metric in ("effective_bits", "size_ratio"):
                    row[metric] = _value(numbers.get(variant.name, metric))
                row |= {"ln_perplexity_ratio": ratio.value, "low": ratio.low, "high": ratio.high}
                for metric in ("perplexity", "kl_mean", "same_top1"):
                    row[metric] = _value(numbers.get(variant.name, metric, corpus))
                row["mean_accuracy"] = _value(numbers.get(variant.name, "mean_accuracy", ALL_TASKS))
                rows.append(row)
    return _rounded(pd.DataFrame(rows, columns=list(rows[0]) if rows else ["variant", "corpus", "ln_perplexity_ratio"]))


def decoding_points(numbers: Numbers) -> pd.DataFrame:
    """The content of decoding.csv: a row per variant and strategy, for DVC plots."""
    rows = []
    metrics = ("accuracy", *OPEN_METRICS, MAUVE, *ROUGE)
    strategies = list(dict.fromkeys(name for metric in metrics for name in numbers.strategies(metric)))
    for variant in numbers.decoded_variants():
        for strategy in strategies:
            row: dict[str, Any] = {"variant": variant, "strategy": strategy}
            for metric in metrics:
                # The first data set of a metric has the plain name; DVC plots that.
                for place, dataset in enumerate(numbers.datasets(metric, strategy=True)):
                    found = numbers.get(variant, metric, dataset, strategy)
                    name = f"{metric}[{dataset}]" if place else metric
                    row[name] = _value(found)
                    if name == "accuracy":
                        row |= {
                            "low": found.low if found else math.nan,
                            "high": found.high if found else math.nan,
                        }
            rows.append(row)
    return _rounded(pd.DataFrame(rows, columns=list(rows[0]) if rows else ["variant", "strategy", "accuracy"]))


def _value(estimate: Estimate | None) -> float:
    return math.nan if estimate is None else estimate.value


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    numeric = table.select_dtypes("number").columns
    table[numeric] = table[numeric].map(lambda value: value if math.isnan(value) else round_digits(value))
    return table
