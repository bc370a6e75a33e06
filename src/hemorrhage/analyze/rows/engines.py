"""Rows of what variants do in engines: what the weights cost, and what the engine's kernels add.

Of each metric there is the engine's own number, beside the base in float32, and its parts, all on the same windows:
``weights``, our float32 reading of the same file; ``added``, the engine's less that; ``kernels``, the engine beside our
reading. ln(perplexity ratio) is the sum of weights and added; a KL has no such sum, and added may be below 0 where
rounding errors of the kernels happen to undo some of the weights'.

Of a server that gives the likeliest tokens alone, a KL is an interval: each end is a row, and the KL itself has no
estimate but the reason, with the interval that holds both ends' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.protocol import add_protocol, of_engine, strip_protocol
from hemorrhage.analyze.rows.diagnostics import cost_rows
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats

WEIGHTS, ADDED, KERNELS = "weights", "added", "kernels"
"""Parts of an engine's damage."""

LOW, HIGH = "low", "high"
"""The ends of what is known as an interval: parts of their own, after the name of what they are ends of."""

INTERVAL = "an interval: the server gives the likeliest tokens alone, and not what the others have"
UNBOUNDED = "nothing bounds what the server gives the tokens that it does not name"

METRICS = {
    "ln_perplexity_ratio": ("", WEIGHTS, ADDED),
    "kl_mean": ("", WEIGHTS, ADDED, KERNELS),
    "same_top1": ("", WEIGHTS, KERNELS),
}
"""Metric -> its parts that are measured; ``""``: all of it."""


def engine_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Yield the rows of all engines. What an engine did not load has none: its gap says why."""
    for engine, outputs in inputs.served.items():
        for name in inputs.variants:
            if name in outputs:
                yield from _rows(inputs.variants[name], engine, outputs[name], spec)


def in_engine(rows: pd.DataFrame, engine: str, part: str = "") -> pd.DataFrame:
    """Return the rows of an engine's whole damage under the metrics' own names: for whoever asks about that engine.

    ``part``: those of a part of it, such as an end.
    """
    names = {of_engine(metric, engine, part): metric for metric in METRICS}
    chosen = rows[rows["metric"].map(strip_protocol).isin(names)]
    return chosen.assign(metric=[_renamed(metric, names) for metric in chosen["metric"]])


def _renamed(metric: str, names: Mapping[str, str]) -> str:
    name = strip_protocol(metric)
    return names[name] + metric.removeprefix(name)


def _rows(variant: Variant, engine: str, output: Output, spec: Spec) -> Iterator[Row]:
    tokens = output.tables.get("tokens.parquet")
    for corpus, stated in output.manifest["corpora"].items():
        source = Source(corpus, stated["protocol"], stated["sha256"], environment_id(output.manifest))
        if output.failure is not None:
            statistics = dict.fromkeys(_keys(), Statistic.failed(output.failure))
        elif tokens is not None:
            statistics = _statistics(tokens[tokens["corpus"] == corpus], corpus, spec)
        else:
            continue
        for (metric, part), statistic in statistics.items():
            yield row(variant, add_protocol(of_engine(metric, engine, part), stated["protocol"]), statistic, source)
    for measured in cost_rows(variant, output):
        fields = output.manifest["engine"]
        protocol = f"{measured.protocol} engine={fields['name']}-{fields['version']}"
        yield measured._replace(metric=of_engine(measured.metric, engine), protocol=protocol)


def _keys() -> list[tuple[str, str]]:
    return [(metric, part) for metric, parts in METRICS.items() for part in parts]


def _statistics(tokens: pd.DataFrame, corpus: str, spec: Spec) -> dict[tuple[str, str], Statistic]:
    """Return each metric's parts on one corpus; what is added has a test against what float32 leaves in doubt."""
    _, block = np.unique(tokens["window"].to_numpy(), return_inverse=True)
    sizes = np.bincount(block).astype(np.int64)
    counts = bootstrap.draws(corpus, len(sizes), spec.resamples, spec.seed)
    statistics: dict[tuple[str, str], Statistic] = {}
    of_server = "kl_low" in tokens
    for (metric, part), values in (_values_asked if of_server else _values)(tokens).items():
        if not np.isfinite(values).all():
            statistics[metric, part] = Statistic.undefined(_why_not(values), len(sizes))
            continue
        sums = np.bincount(block, weights=values, minlength=len(sizes)).astype(np.float64)
        low, high = bootstrap.interval(bootstrap.means(counts, sums, sizes), spec.confidence, len(sizes))
        statistic = Statistic(float(values.mean()), low, high, len(sizes))
        if part == ADDED:
            beyond = np.sign(sums) * np.maximum(np.abs(sums) - ROUNDING * sizes, 0)
            statistic = replace(statistic, p=significance.sign_flip(beyond, spec.seed))
        statistics[metric, part] = statistic
    return _with_intervals(statistics) if of_server else statistics


def end(part: str, which: str) -> str:
    """Return the part that is the end LOW or HIGH of a part."""
    return f"{part}_{which}" if part else which


def _with_intervals(statistics: dict[tuple[str, str], Statistic]) -> dict[tuple[str, str], Statistic]:
    """Return the statistics with those of which only the two ends are known: no estimate, and both ends' interval."""
    whole: dict[tuple[str, str], Statistic] = {}
    for part in ("", ADDED, KERNELS):
        low, high = (statistics["kl_mean", end(part, which)] for which in (LOW, HIGH))
        undefined = Statistic.undefined(INTERVAL, low.n)
        whole["kl_mean", part] = replace(undefined, low=low.low, high=high.high)
    return {**statistics, **whole}


def _why_not(values: Floats) -> str:
    missing = int(np.isnan(values).sum())
    return f"the server gives nothing of {missing:,} of {len(values):,} tokens" if missing else UNBOUNDED


def _values(tokens: pd.DataFrame) -> dict[tuple[str, str], Floats]:
    """Return the value of each token that a metric's part is the mean of."""
    column = _columns(tokens)
    return {
        **_values_of_tokens(column),
        ("kl_mean", ""): column["kl"],
        ("kl_mean", WEIGHTS): column["kl_weights"],
        ("kl_mean", ADDED): column["kl"] - column["kl_weights"],
        ("kl_mean", KERNELS): column["kl_kernels"],
    }


def _values_asked(tokens: pd.DataFrame) -> dict[tuple[str, str], Floats]:
    """Return the same of a server: the ends of a KL in the place of it."""
    column = _columns(tokens)
    values = {**_values_of_tokens(column), ("kl_mean", WEIGHTS): column["kl_weights"]}
    for which in (LOW, HIGH):
        values["kl_mean", end("", which)] = column[f"kl_{which}"]
        values["kl_mean", end(ADDED, which)] = column[f"kl_{which}"] - column["kl_weights"]
        values["kl_mean", end(KERNELS, which)] = column[f"kernels_{which}"]
    return values


def _columns(tokens: pd.DataFrame) -> dict[str, Floats]:
    return {name: tokens[name].to_numpy(np.float64) for name in tokens.columns if name != "corpus"}


def _values_of_tokens(column: Mapping[str, Floats]) -> dict[tuple[str, str], Floats]:
    """Return what rests on single tokens and not on whole distributions."""
    return {
        ("ln_perplexity_ratio", ""): column["nll"] - column["base_nll"],
        ("ln_perplexity_ratio", WEIGHTS): column["nll_weights"] - column["base_nll"],
        ("ln_perplexity_ratio", ADDED): column["nll"] - column["nll_weights"],
        ("same_top1", ""): column["same_top1"],
        ("same_top1", WEIGHTS): column["same_top1_weights"],
        ("same_top1", KERNELS): column["same_top1_kernels"],
    }
