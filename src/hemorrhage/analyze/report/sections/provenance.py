"""Protocols of the texts and tasks, and all rows for the page's CSV."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import pandas as pd

from hemorrhage.analyze.report.sections.tasks import SUITES


class Protocol(NamedTuple):
    """A data set, its protocol and its SHA-256."""

    dataset: str
    protocol: str
    data: str


class Texts(TypedDict):
    """A column of texts: each row's is at its code in the list of different ones."""

    texts: list[str]
    codes: list[int]


class NumberColumn(TypedDict):
    """A column of numbers."""

    numbers: list[float | None]


def protocols(rows: pd.DataFrame) -> list[Protocol]:
    """List data set, protocol and hash of every text and task."""
    used = rows[(rows["data"] != "") & ~rows["dataset"].isin(SUITES)]
    unique = used[["dataset", "protocol", "data"]].drop_duplicates()
    return [Protocol(*row) for row in unique.itertuples(index=False, name=None)]


def csv_columns(rows: pd.DataFrame) -> dict[str, Texts | NumberColumn]:
    """Return the columns of the rows, without those of single layers, heads and kinds of tokens."""
    rows = rows[~rows["metric"].str.contains(r"\{(?:layer|head|position|frequency)=")]
    columns: dict[str, Texts | NumberColumn] = {}
    for name in rows.columns:
        column = rows[name]
        if column.dtype == object or pd.api.types.is_string_dtype(column):
            codes, texts = pd.factorize(column)
            columns[name] = {"texts": list(texts), "codes": codes.tolist()}
        else:
            columns[name] = {"numbers": [None if pd.isna(value) else _number(float(value)) for value in column]}
    return columns


def _number(value: float) -> float:
    return int(value) if value.is_integer() else float(f"{value:.8g}")
