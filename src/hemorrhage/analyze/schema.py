"""Columns of ``hemorrhage.parquet``; checked before it is saved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandera.pandas as pa


def _measured(rows: pd.DataFrame) -> pd.Series:
    return np.isfinite(rows["estimate"]) | (rows["status"] != "ok")


def _explained(rows: pd.DataFrame) -> pd.Series:
    return (rows["reason"] != "") == (rows["status"] != "ok")


def _ordered(rows: pd.DataFrame) -> pd.Series:
    return rows["low"].isna() | rows["high"].isna() | (rows["low"] <= rows["high"])


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
        "n": pa.Column("int64", pa.Check.ge(0)),
        "seed": pa.Column("Int64", nullable=True),
        "environment": pa.Column(str),
        "data": pa.Column(str),
        "status": pa.Column(str, pa.Check.isin(["ok", "failed", "undefined"])),
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
and ``high`` empty where a number is exact (bytes); ``n``: blocks or items it rests on; ``data``: sha256 of
the text or task; ``environment``: id of machine and libraries (provenance.json says which)."""
