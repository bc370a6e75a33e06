"""Columns of what the mitigate step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

TOKENS = pa.DataFrameSchema(
    {
        "correction": pa.Column(str),
        "shuffled": pa.Column("int64", pa.Check.isin([0, 1, 2])),
        "part": pa.Column(str, pa.Check.isin(["text", "generation"])),
        "dataset": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "position": pa.Column("int64", pa.Check.ge(1)),
        "nll": pa.Column("float32", pa.Check.ge(0), nullable=True),
        "base_nll": pa.Column("float32", pa.Check.ge(0)),
        "kl": pa.Column("float32", pa.Check.ge(-1e-3), nullable=True),
        "distance": pa.Column("float32", pa.Check.in_range(0, 1 + 1e-4)),
        "same_top1": pa.Column(bool),
        "confidence": pa.Column("float32", pa.Check.in_range(0, 1 + 1e-4)),
        "right": pa.Column(bool),
    },
    strict=True,
)
"""``tokens.parquet``: a row per correction and predicted token, of the second half of each corpus (``dataset``), and of
what the corrected model sampled itself (``window`` is then the window whose beginning it continued). ``correction`` is
``none`` for the altered model as it is, ``top_p`` for its plain nucleus; ``shuffled``: the number of the control's
shuffle, 0 for the correction itself. ``kl``, ``nll`` empty where tokens are cut off; ``distance``: total variation
between what base and variant sample from; ``right``: the top-1 token is the text's.
"""

TEXTS = pa.DataFrameSchema(
    {
        "correction": pa.Column(str),
        "shuffled": pa.Column("int64", pa.Check.isin([0, 1, 2])),
        "search": pa.Column(str, pa.Check.isin(["greedy", "sampling"])),
        "task": pa.Column(str, pa.Check.isin(["closed_ended", "open_ended"])),
        "dataset": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "text": pa.Column(str),
        "tokens": pa.Column(object),
        "answer": pa.Column(str),
        "correct": pa.Column(bool),
        "base_nll": pa.Column("float64", pa.Check.ge(0), nullable=True),
        "agreement": pa.Column("int64", pa.Check.ge(0)),
        "base_length": pa.Column("int64", pa.Check.ge(1)),
    },
    strict=True,
    unique=["correction", "shuffled", "search", "dataset", "item"],
)
"""``texts.parquet``: a row per text that the corrected model wrote, and of the base model's own (``correction`` is
``base``, of its nucleus ``base top_p``). ``item``: of the task, or the window whose beginning was continued.
``base_nll``: mean nats per token under the base, NaN when closed-ended. ``agreement``: tokens until the first that
differs from the base's text by the same search, which has ``base_length``. Greedy texts that a correction can't change
are left out.
"""
