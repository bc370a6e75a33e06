"""Columns of what the steps of training write; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

DOCUMENTS = pa.DataFrameSchema(
    {
        "part": pa.Column(str, pa.Check.isin(["docs", "code"])),
        "split": pa.Column(str, pa.Check.isin(["train", "heldout"])),
        "name": pa.Column(str),
        "text": pa.Column(str, pa.Check.str_length(min_value=1)),
    },
    strict=True,
)
"""``documents.parquet`` of the training text: a row per document, in the order in which they are read."""

CURVE = pa.DataFrameSchema(
    {
        "step": pa.Column("int64", pa.Check.ge(1)),
        "tokens": pa.Column("int64", pa.Check.ge(1)),
        "loss": pa.Column("float64"),
        "heldout_loss": pa.Column("float64", nullable=True),
        "learning_rate": pa.Column("float64", pa.Check.ge(0)),
        "gradient_norm": pa.Column("float64"),
    },
    strict=True,
)
"""``curve.parquet`` of a training: a row per step. ``loss``: nats per token, of the step's own batch before its update;
``heldout_loss``: after it, at some steps; ``gradient_norm``: before clipping. Of preferences, the loss is DPO's, and
``tokens`` are those of the responses."""
