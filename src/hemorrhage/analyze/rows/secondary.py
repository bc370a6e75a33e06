"""Rows of lm-eval's other metrics: those of a task besides its primary one, such as ``acc`` beside ``acc_norm``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats

METRICS = "metrics.parquet"

PERPLEXITY = "perplexity"
"""The metric whose value of an item is a log-likelihood, and whose aggregate is exp of its negative mean."""


def secondary_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Rows ``secondary{metric=acc,none}`` of all variants, and ``secondary_change{...}`` against the base by item."""
    base = inputs.harness.get(BASE)
    before = base.tables.get(METRICS) if base else None
    for name, output in inputs.harness.items():
        for (task, metric), items in output.tables.get(METRICS, _NONE).groupby(["task", "metric"], sort=False):
            about = output.manifest["tasks"][str(task)]
            source = Source(str(task), about["protocol"], about["sha256"], environment_id(output.manifest))
            values = items.set_index("item")["value"]
            statistic = _level(values.to_numpy(), f"{task}", str(metric), spec)
            yield row(inputs.variants[name], f"secondary{{metric={metric}}}", statistic, source)
            if name == BASE or before is None:
                continue
            theirs = before[(before["task"] == task) & (before["metric"] == metric)].set_index("item")["value"]
            change = (values - theirs).dropna().to_numpy()
            if len(change):
                statistic = _change(change, f"{task}", spec)
                yield row(inputs.variants[name], f"secondary_change{{metric={metric}}}", statistic, source)


_NONE = pd.DataFrame(columns=["task", "item", "metric", "value"])


def _level(values: Floats, task: str, metric: str, spec: Spec) -> Statistic:
    counts = bootstrap.draws(task, len(values), spec.resamples, spec.seed)
    mean, n = float(values.mean()), len(values)
    low, high = bootstrap.interval(counts @ values / n, spec.confidence, n)
    if metric.partition(",")[0] == PERPLEXITY:
        return Statistic(math.exp(-mean), math.exp(-high), math.exp(-low), n)
    if np.isin(values, (0.0, 1.0)).all():
        low, high = bootstrap.wilson(float(values.sum()), n, spec.confidence)
    return Statistic(mean, low, high, n)


def _change(change: Floats, task: str, spec: Spec) -> Statistic:
    counts = bootstrap.draws(task, len(change), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ change / len(change), spec.confidence, len(change))
    return Statistic(float(change.mean()), low, high, len(change), p=significance.sign_flip(change, spec.seed))
