"""Columns of ``hemorrhage.parquet``; checked before it is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from hemorrhage.analyze.inputs import Variant

AT_CHANCE = "at chance"


def _measured(rows: pd.DataFrame) -> pd.Series:
    return np.isfinite(rows["estimate"]) | (rows["status"] != "ok")


def _explained(rows: pd.DataFrame) -> pd.Series:
    return (rows["reason"] != "") == (rows["status"] != "ok")


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
        "p": pa.Column(float, PROBABILITY, nullable=True),
        "q": pa.Column(float, PROBABILITY, nullable=True),
        "mde": pa.Column(float, pa.Check.ge(0), nullable=True),
        "n": pa.Column("int64", pa.Check.ge(0)),
        "seed": pa.Column("Int64", nullable=True),
        "environment": pa.Column(str),
        "data": pa.Column(str),
        "status": pa.Column(str, pa.Check.isin(["ok", "failed", "undefined", AT_CHANCE])),
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
and ``high`` empty where a number is exact (bytes) or an interval means nothing (a maximum); ``p``: of the paired test
against the base; ``q``: the same after Benjamini and Hochberg over all variants of this metric and data set; ``mde``:
the smallest true effect that such a test finds four times out of five; ``n``: blocks or items it rests on; ``data``:
sha256 of the text or task; ``environment``: id of machine and libraries (provenance.json says which). Status ``at
chance``: measured, but the base model does no better than guessing, so the row takes part in nothing."""


def row(variant: Variant, metric: str, **fields: Any) -> dict[str, Any]:
    """A row with what is known of its variant, and ``fields`` in place of what a row says otherwise."""
    content = {
        "variant": variant.name,
        "sweep": variant.sweep,
        "family": variant.family,
        "method": variant.method,
        "curve": variant.curve,
        "setting": variant.label,
        "axis": variant.axis,
        "severity": variant.severity,
        "metric": metric,
        "dataset": "",
        "protocol": "",
        "estimate": math.nan,
        "low": math.nan,
        "high": math.nan,
        "p": math.nan,
        "q": math.nan,
        "mde": math.nan,
        "n": 0,
        "seed": variant.seed,
        "environment": "",
        "data": "",
        "status": "ok",
        "reason": "",
    }
    return {**content, **fields}


def environment_id(manifest: Mapping[str, Any]) -> str:
    """Id of the environment that an output was made in."""
    return manifest.get("environment", {}).get("id", "")
