"""The results by variant: lookup, headline metrics for DVC, tables for DVC plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import pandas as pd

from hemorrhage.analyze.axes import failure, position, sweeps
from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.protocol import decoding_tag, of_engine, strip_protocol, tag
from hemorrhage.analyze.rows.decoding import CLOSED_METRICS, DECODE, MAUVE, OPEN_METRICS, ROUGE, SPREAD
from hemorrhage.analyze.rows.engines import ADDED
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.schema import OK
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
        ok = rows[rows["status"] == OK]
        self._estimates: dict[tuple[str, str, str, str], Estimate] = {}
        keys = ["variant", "dataset", "family", "method"]
        numbers = ["estimate", "low", "high", "n", "p", "q", "mde", "metric", "protocol"]
        # Column by column: strings of Arrow are slow one by one.
        columns = [ok[name].to_numpy(object).tolist() for name in keys + numbers]
        for variant, dataset, family, method, *fields in zip(*columns, strict=True):
            strategy, estimate = method if family == DECODE else "", Estimate(*fields)
            self._estimates[variant, strip_protocol(estimate.metric), dataset, strategy] = estimate
        self._measured_on: dict[str, dict[tuple[str, str], None]] = {}
        """By metric, the data sets and strategies it was measured on, in their order."""
        for _, metric, dataset, strategy in self._estimates:
            self._measured_on.setdefault(metric, {})[dataset, strategy] = None

    def get(self, variant: str, metric: str, dataset: str = "", strategy: str = "") -> Estimate | None:
        """Return the estimate, or None where there is none."""
        return self._estimates.get((variant, metric, dataset, strategy))

    def datasets(self, metric: str, strategy: bool = False) -> list[str]:
        """Return the data sets that a metric was measured on, in their order."""
        measured_on = self._measured_on.get(metric, {})
        return list(dict.fromkeys(dataset for dataset, name in measured_on if bool(name) == strategy))

    def strategies(self, metric: str) -> list[str]:
        """Return the decoding strategies that a metric was measured for, in their order."""
        measured_on = self._measured_on.get(metric, {})
        return list(dict.fromkeys(name for _, name in measured_on if name not in ("", ALL_STRATEGIES)))

    def decoded_variants(self) -> list[str]:
        """Return the variants with decoding results, in their order."""
        return list(dict.fromkeys(key[0] for key in self._estimates if key[3]))


def round_digits(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.{DIGITS}g}")


class Headline(TypedDict):
    """The content of metrics.json. ``variants``: variant -> metric -> value, or its values by corpus."""

    variants: dict[str, dict[str, float | dict[str, float]]]
    counts: dict[str, int]
    ship: Mapping[str, Json]


def headline(
    inputs: Inputs,
    numbers: Numbers,
    corpora: list[str],
    suites: Sequence[Suite],
    inside: int,
    ship: Mapping[str, Json],
) -> Headline:
    """Return the content of metrics.json: nothing that is not a result, so that equal results give equal bytes.

    A key says under which protocol, or over which tasks, so that two commits are compared only where they agree.
    ``inside``: the number of variants inside the budget. ``ship``: the recommended sizes.
    """
    tasks = "+".join(next((suite.averaged_tasks for suite in suites if suite.name == ALL_TASKS), []))
    engines = list(inputs.served)
    of_variants = {variant: _headline_of(variant, numbers, corpora, tasks, engines) for variant in inputs.variants}
    failed = sum(failure(inputs, variant) is not None for variant in inputs.variants.values())
    return {
        "variants": {variant: values for variant, values in of_variants.items() if values},
        "counts": {"variants": len(inputs.variants) - 1, "failed": failed, "inside_budget": inside},
        "ship": ship,
    }


def _headline_of(
    variant: str, numbers: Numbers, corpora: Sequence[str], tasks: str, engines: Iterable[str]
) -> dict[str, float | dict[str, float]]:
    values: dict[str, float | dict[str, float]] = {}
    in_engines = [of_engine("kl_mean", engine, part) for engine in engines for part in ("", ADDED)]
    for metric in ("perplexity", "ln_perplexity_ratio", "kl_mean", "same_top1", *in_engines):
        by_corpus = {corpus: numbers.get(variant, metric, corpus) for corpus in corpora}
        for name in dict.fromkeys(estimate.metric for estimate in by_corpus.values() if estimate):
            values[name] = {
                corpus: round_digits(estimate.value)
                for corpus, estimate in by_corpus.items()
                if estimate and estimate.metric == name
            }
    for metric, dataset in (
        ("mean_accuracy", ALL_TASKS),
        ("mean_flips", ALL_TASKS),
        ("effective_bits", ""),
        ("size_ratio", ""),
    ):
        estimate = numbers.get(variant, metric, dataset)
        if estimate:
            values[f"{metric}[{tasks}]" if dataset else metric] = round_digits(estimate.value)
    for dataset in numbers.datasets(SPREAD, strategy=True):
        spread = numbers.get(variant, SPREAD, dataset, ALL_STRATEGIES)
        if spread:
            name = "-".join(filter(None, (dataset, decoding_tag(spread.protocol))))
            values[f"decoding_spread[{name}]"] = round_digits(spread.value)
    return values


def curve_points(inputs: Inputs, numbers: Numbers, corpora: list[str]) -> pd.DataFrame:
    """Return the content of curves.csv: a row per measured variant and corpus, for DVC plots."""
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
    return _round_table(
        pd.DataFrame(rows, columns=list(rows[0]) if rows else ["variant", "corpus", "ln_perplexity_ratio"])
    )


def decoding_points(numbers: Numbers) -> pd.DataFrame:
    """Return the content of decoding.csv: a row per variant and strategy, for DVC plots."""
    metrics = tuple(dict.fromkeys((*CLOSED_METRICS, *OPEN_METRICS, MAUVE, *ROUGE)))
    strategies = list(dict.fromkeys(name for metric in metrics for name in numbers.strategies(metric)))
    rows = [
        _decoding_point(numbers, metrics, variant, strategy)
        for variant in numbers.decoded_variants()
        for strategy in strategies
    ]
    return _round_table(pd.DataFrame(rows, columns=list(rows[0]) if rows else ["variant", "strategy", "accuracy"]))


def _decoding_point(numbers: Numbers, metrics: Sequence[str], variant: str, strategy: str) -> dict[str, str | float]:
    row: dict[str, str | float] = {"variant": variant, "strategy": strategy}
    for metric in metrics:
        # The first data set of a metric has the plain name; DVC plots that.
        for index, dataset in enumerate(numbers.datasets(metric, strategy=True)):
            estimate = numbers.get(variant, metric, dataset, strategy)
            name = f"{metric}[{dataset}]" if index else metric
            row[name] = _value(estimate)
            if name == "accuracy":
                row["low"] = estimate.low if estimate else math.nan
                row["high"] = estimate.high if estimate else math.nan
    return row


def _value(estimate: Estimate | None) -> float:
    return math.nan if estimate is None else estimate.value


def _round_table(table: pd.DataFrame) -> pd.DataFrame:
    numeric = table.select_dtypes("number").columns
    table[numeric] = table[numeric].map(lambda value: value if math.isnan(value) else round_digits(value))
    return table
