"""Columns of ``hemorrhage.parquet``; checked before it is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pa

from hemorrhage.analyze.inputs import Variant
from hemorrhage.analyze.manifests import Manifest

OK, FAILED, UNDEFINED, AT_CHANCE = "ok", "failed", "undefined", "at chance"
"""Status of a row. ``at chance``: measured, but the base model does no better than guessing, so that the row takes part
in nothing."""


def _measured(rows: pd.DataFrame) -> pd.Series:
    return np.isfinite(rows["estimate"]) | (rows["status"] != OK)


def _explained(rows: pd.DataFrame) -> pd.Series:
    return (rows["reason"] != "") == (rows["status"] != OK)


def _ordered(rows: pd.DataFrame) -> pd.Series:
    return rows["low"].isna() | rows["high"].isna() | (rows["low"] <= rows["high"])


PROBABILITY = pa.Check.in_range(0, 1)

ROWS = pa.DataFrameSchema(
    {
        "variant": pa.Column(str, pa.Check.str_length(min_value=1)),
        "sweep": pa.Column(str),
        "family": pa.Column(str),
        "method": pa.Column(str),
        "curve": pa.Column(str),
        "setting": pa.Column(str),
        "axis": pa.Column(str),
        "severity": pa.Column(float, nullable=True),
        "metric": pa.Column(str, pa.Check.str_length(min_value=1)),
        "dataset": pa.Column(str),
        "protocol": pa.Column(str),
        "estimate": pa.Column(float, nullable=True),
        "low": pa.Column(float, nullable=True),
        "high": pa.Column(float, nullable=True),
        "error": pa.Column(float, pa.Check.ge(0), nullable=True),
        "trials": pa.Column(float, pa.Check.gt(0), nullable=True),
        "p": pa.Column(float, PROBABILITY, nullable=True),
        "q": pa.Column(float, PROBABILITY, nullable=True),
        "mde": pa.Column(float, pa.Check.ge(0), nullable=True),
        "n": pa.Column("int64", pa.Check.ge(0)),
        "seed": pa.Column("Int64", nullable=True),
        "environment": pa.Column(str),
        "data": pa.Column(str),
        "status": pa.Column(str, pa.Check.isin([OK, FAILED, UNDEFINED, AT_CHANCE])),
        "reason": pa.Column(str),
    },
    checks=[
        pa.Check(_measured, error="a row that is ok has no finite estimate"),
        pa.Check(_explained, error="a row has a reason exactly when it is not ok"),
        pa.Check(_ordered, error="an interval's low end lies above its high end"),
    ],
    unique=["variant", "family", "method", "metric", "dataset", "protocol"],
    strict=True,
    ordered=True,
)
"""A row per variant, metric and data set. ``estimate``, ``low``, ``high`` in the metric's own unit, ``low``
and ``high`` empty where a number is exact (bytes) or an interval means nothing (a maximum); ``error``: the standard
error of a mean over windows or items; ``trials``: of a mean over a suite, the independent items it is worth; ``p``: of
the paired test against the base; ``q``: the same after Benjamini and Hochberg over all variants of this metric and data
set; ``mde``: the smallest true effect that such a test finds four times out of five; ``n``: blocks or items it rests
on; ``data``: sha256 of the text or task; ``environment``: id of machine and libraries (provenance.json says which)."""


@dataclass(frozen=True)
class Source:
    """What a number was measured on; ``data``: sha256 of the text or task, ``environment``: id of the environment."""

    dataset: str = ""
    protocol: str = ""
    data: str = ""
    environment: str = ""


@dataclass(frozen=True)
class Statistic:
    """An estimate with its interval, the ``n`` blocks or items it rests on, and its test; or why there is none.

    ``error`` and ``trials``: what one-sided bounds are made of (hemorrhage.analyze.stats.bounds).
    """

    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p: float = math.nan
    mde: float = math.nan
    status: str = OK
    reason: str = ""
    error: float = math.nan
    trials: float = math.nan

    @classmethod
    def failed(cls, reason: str) -> Statistic:
        """Return what stands for a number whose output could not be made."""
        return cls(status=FAILED, reason=reason)

    @classmethod
    def undefined(cls, reason: str, n: int = 0) -> Statistic:
        """Return what stands for a number that the data don't define."""
        return cls(n=n, status=UNDEFINED, reason=reason)

    def untested(self) -> Statistic:
        """Return the same without its test: of the base, or of a task at chance."""
        return replace(self, p=math.nan, mde=math.nan)


class Row(NamedTuple):
    """A row of hemorrhage.parquet; ``q`` is computed of all rows together."""

    variant: str
    sweep: str
    family: str
    method: str
    curve: str
    setting: str
    axis: str
    severity: float
    metric: str
    dataset: str
    protocol: str
    estimate: float
    low: float
    high: float
    error: float
    trials: float
    p: float
    q: float
    mde: float
    n: int
    seed: int | None
    environment: str
    data: str
    status: str
    reason: str


def row(variant: Variant, metric: str, statistic: Statistic, source: Source) -> Row:
    """Return the row of one number of a variant."""
    return Row(
        variant=variant.name,
        sweep=variant.sweep,
        family=variant.family,
        method=variant.method,
        curve=variant.curve,
        setting=variant.label,
        axis=variant.axis,
        severity=variant.severity,
        metric=metric,
        dataset=source.dataset,
        protocol=source.protocol,
        estimate=statistic.estimate,
        low=statistic.low,
        high=statistic.high,
        error=statistic.error,
        trials=statistic.trials,
        p=statistic.p,
        q=math.nan,
        mde=statistic.mde,
        n=statistic.n,
        seed=variant.seed,
        environment=source.environment,
        data=source.data,
        status=statistic.status,
        reason=statistic.reason,
    )


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as a table with the columns of the schema, ``q`` not computed yet."""
    table = pd.DataFrame(rows, columns=list(Row._fields))
    table["seed"] = table["seed"].astype("Int64")
    return table


def environment_id(manifest: Manifest) -> str:
    """Return the id of the environment that an output was made in."""
    return manifest.get("environment", {}).get("id", "")
