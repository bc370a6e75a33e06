"""Rows of what the evaluate step measured layer by layer (diagnostics), and of what running a variant costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows.schema import OK, Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

DIAGNOSTICS = "diagnostics"
"""Data set of these rows: the windows that the diagnostics read, which their protocol names."""

SpeedKey = Literal["prefill", "decode"]
BytesKey = Literal["peak_bytes", "kv_bytes", "kv_bytes_formula"]
SettingKey = Literal["batch", "length", "new_tokens", "threads", "dtype", "peak_of"]

SPEEDS: dict[SpeedKey, str] = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}
BYTES: tuple[BytesKey, ...] = get_args(BytesKey)
SETTINGS: tuple[SettingKey, ...] = get_args(SettingKey)
"""What the cost depends on, next to model and machine; ``peak_of`` says which memory the peak is of."""

LESS_IS_WORSE = ("cosine", "sqnr", "cka", "agreement", "overlap")
"""Parts of a metric's name that say that the layer with the smallest value is the worst."""


def diagnostics_rows(variant: Variant, output: Output, spec: Spec) -> Iterator[Row]:
    """Mean over windows of each metric of each layer and head, with Student's interval; mean and worst over layers.

    A metric of layer 3 is ``metric{layer=3}``, of its head 2 ``metric{layer=3,head=2}``, of the whole model
    ``metric``; over layers ``metric{layers=mean}`` and ``metric{layers=worst}``, which is the interval of that layer
    alone and does not know that it was chosen.
    """
    table = output.tables.get("diagnostics.parquet")
    if table is None:
        return
    windows_read = output.manifest.get("diagnostics") or {}
    source = Source(
        dataset=DIAGNOSTICS,
        protocol=windows_read.get("protocol", ""),
        data=windows_read.get("sha256", ""),
        environment=environment_id(output.manifest),
    )
    # All at once: a study has tens of thousands.
    windows = table.groupby(["metric", "layer", "head"], sort=True)["value"]
    means = windows.agg(["mean", "std", "count"])
    for (metric, layer, head), mean, spread, count in means.itertuples(name=None):
        low, high = bootstrap.t_interval_of(mean, spread, count, spec.confidence)
        yield row(variant, _name(metric, layer, head), Statistic(mean, low, high, count), source)
    layers = table[(table["layer"] >= 0) & (table["head"] < 0)]
    for metric, values in layers.groupby("metric", sort=True):
        # What is not defined in a window has no row there; a layer without all windows would bias the mean.
        whole = values.pivot(index="window", columns="layer", values="value").dropna(axis=1).to_numpy(np.float64)
        if whole.shape[1] > 1:
            of_layers = whole.mean(axis=0)
            less = any(word in str(metric) for word in LESS_IS_WORSE)
            worst = whole[:, int(of_layers.argmin() if less else of_layers.argmax())]
            yield row(variant, f"{metric}{{layers=mean}}", _mean(whole.mean(axis=1), spec), source)
            yield row(variant, f"{metric}{{layers=worst}}", _mean(worst, spec), source)


def _name(metric: str, layer: int, head: int) -> str:
    if layer < 0:
        return metric if head < 0 else f"{metric}{{head={head}}}"
    return f"{metric}{{layer={layer}}}" if head < 0 else f"{metric}{{layer={layer},head={head}}}"


def _mean(values: Floats, spec: Spec) -> Statistic:
    low, high = bootstrap.t_interval(values, spec.confidence)
    return Statistic(float(values.mean()), low, high, len(values))


def cost_rows(variant: Variant, output: Output) -> Iterator[Row]:
    """Tokens per second (median, least and most of the repetitions) and bytes, marked where they are theoretical."""
    cost = output.cost
    if cost is None:
        return
    settings = " ".join(f"{key}={cost[key]}" for key in SETTINGS if key in cost)
    mark = f" theoretical: {cost['theoretical']}" if cost.get("theoretical") else ""
    source = Source(protocol=settings + mark, environment=environment_id(output.manifest))
    for key, metric in SPEEDS.items():
        speeds = np.asarray(cost.get(key) or [], dtype=np.float64)
        if len(speeds):
            median = Statistic(float(np.median(speeds)), float(speeds.min()), float(speeds.max()), len(speeds))
            yield row(variant, metric, median, source)
    for measured in BYTES:
        size = cost.get(measured)
        if size is not None:
            yield row(variant, measured, Statistic(float(size), n=1), source)


def layer_estimates(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Select a metric's estimates by variant (rows) and layer (columns, int), of the rows that are ok."""
    chosen = rows[(rows["status"] == OK) & rows["metric"].str.fullmatch(rf"{metric}\{{layer=\d+\}}")]
    layer = chosen["metric"].str.extract(r"layer=(\d+)", expand=False).astype(int)
    return chosen.assign(layer=layer).pivot(index="variant", columns="layer", values="estimate")
