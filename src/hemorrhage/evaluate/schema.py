"""Columns of what the evaluate step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

TOKENS = pa.DataFrameSchema(
    {
        "corpus": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "position": pa.Column("int64", pa.Check.ge(1)),
        "nll": pa.Column("float32", pa.Check.ge(0)),
        "base_nll": pa.Column("float32", pa.Check.ge(0)),
        # Rounding may leave a distribution that equals its reference a hair below zero.
        "kl": pa.Column("float32", pa.Check.ge(-1e-3)),
        "same_top1": pa.Column(bool),
    },
    strict=True,
)
"""``tokens.parquet``: a row per predicted token; nll, base_nll, kl in nats."""

ANSWERS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "choice": pa.Column("int64", pa.Check.ge(0)),
        "correct": pa.Column(bool),
        "margin": pa.Column("float64"),
    },
    strict=True,
)
"""The base model's ``items.parquet`` in the reference."""

ITEMS = ANSWERS.add_columns({"base_choice": pa.Column("int64"), "base_correct": pa.Column(bool)})
"""``items.parquet``: a row per task item; margin (nats) is the right choice minus the best wrong one."""
