"""Columns of what the text step writes of a user's file; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

SPLIT = pa.Column(str, pa.Check.isin(["calibration", "evaluation"]))

DOCUMENTS = pa.DataFrameSchema(
    {
        "split": SPLIT,
        "document": pa.Column("int64", pa.Check.ge(0)),
        "text": pa.Column(str),
        "category": pa.Column(str),
    },
    strict=True,
)
"""``documents.parquet``: a row per record, conversations as their template writes them; ``category``: may be empty."""

SEGMENTS = pa.DataFrameSchema(
    {
        "split": SPLIT,
        "segment": pa.Column("int64", pa.Check.ge(0)),
        "tokens": pa.Column("int64", pa.Check.ge(1)),
        "category": pa.Column(str),
    },
    strict=True,
)
"""``segments.parquet``: a row per stretch of the split's tokens that no window crosses the end of, in their order."""
