"""Columns and manifests of what the evaluate step writes; columns are checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

TOKENS = pa.DataFrameSchema(
    {
        "corpus": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "position": pa.Column("int64", pa.Check.ge(1)),
        "count": pa.Column("int64", pa.Check.ge(0)),
        "nll": pa.Column("float32", pa.Check.ge(0)),
        "base_nll": pa.Column("float32", pa.Check.ge(0)),
        # Rounding may leave a distribution that equals its reference a hair below zero.
        "kl": pa.Column("float32", pa.Check.ge(-1e-3)),
        "same_top1": pa.Column(bool),
        "top10_overlap": pa.Column("float32", pa.Check.in_range(0, 1)),
        "entropy": pa.Column("float32", pa.Check.ge(0)),
        "base_entropy": pa.Column("float32", pa.Check.ge(0)),
        "confidence": pa.Column("float32", pa.Check.in_range(0, 1)),
        "base_confidence": pa.Column("float32", pa.Check.in_range(0, 1)),
        "acceptance": pa.Column("float32", pa.Check.in_range(0, 1), nullable=True),
        "right": pa.Column(bool),
        "base_right": pa.Column(bool),
    },
    strict=True,
)
"""``tokens.parquet``: a row per predicted token.

``count``: how often the token to be predicted is in the corpus's evaluation split; ``nll``, ``kl``, ``entropy`` in
nats; ``top10_overlap``: share of the base's top-10 tokens among the variant's; ``confidence``: probability of
the top-1 token; ``acceptance``: Σ min(p, q) of every sixteenth prediction, else NaN; ``right``: the top-1 token
is the one to be predicted.
"""

WINDOWS = pa.DataFrameSchema(
    {
        "corpus": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "tokens": pa.Column("int64", pa.Check.ge(1)),
        "words": pa.Column("int64", pa.Check.ge(0)),
        "bytes": pa.Column("int64", pa.Check.ge(0)),
        "category": pa.Column(str, required=False),
    },
    strict=True,
)
"""``windows.parquet``: a row per window; how many tokens are scored in it, the size of their text, and what category a
user's file says it is of, empty where it says none."""

ANSWERS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "group": pa.Column("int64", pa.Check.ge(0)),
        "choice": pa.Column("int64", pa.Check.ge(0)),
        "correct": pa.Column(bool),
        "margin": pa.Column("float64"),
    },
    strict=True,
)
"""The base model's ``items.parquet`` in the reference; items of a group share their choices."""

ITEMS = ANSWERS.add_columns({"base_choice": pa.Column("int64"), "base_correct": pa.Column(bool)})
"""``items.parquet``: a row per task item; margin (nats) is the right choice minus the best wrong one."""
