"""Columns of what the harness step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

ITEMS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "group": pa.Column("int64", pa.Check.ge(0)),
        "choice": pa.Column("int64", pa.Check.ge(0)),
        "correct": pa.Column(bool),
        "margin": pa.Column("float64", nullable=True),
    },
    strict=True,
    unique=["task", "item"],
)
"""``items.parquet``: a row per item, numbered through the tasks of a group such as MMLU.

``choice`` is the index of the chosen answer under the task's primary metric; where nothing is chosen, whether the
greedy text is right (LAMBADA), or a code of the extracted answer (GSM8K). ``margin`` is the right choice's score minus
the best wrong one's under that metric, in nats, for ``acc_norm`` in nats per character; NaN where nothing is chosen.
``group`` are items that share their choices: each its own."""

SAMPLES = pa.DataFrameSchema(
    {"task": pa.Column(str), "item": pa.Column("int64", pa.Check.ge(0)), "record": pa.Column(str)},
    strict=True,
)
"""``samples.parquet``: lm-eval's own record of an item as JSON, one for each of the task's filters."""

METRICS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "metric": pa.Column(str),
        "value": pa.Column("float64"),
    },
    strict=True,
    unique=["task", "item", "metric"],
)
"""``metrics.parquet``: what lm-eval's other metrics say of an item, a row for each; ``metric`` is ``metric,filter``.
That of ``perplexity`` is the log-likelihood of the right text in nats."""
