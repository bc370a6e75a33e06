"""Columns of what the mitigate step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

TOKENS = pa.DataFrameSchema(
    {
        "correction": pa.Column(str),
        "shuffled": pa.Column("int64", pa.Check.isin([0, 1, 2])),
        "part": pa.Column(str, pa.Check.isin(["text", "generation"])),
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
"""``tokens.parquet``: a row per correction and predicted token, of the second half of the text, and of what the
corrected model itself generated (``window`` is then the window whose beginning it continued). ``correction`` is
``none`` for the altered model as it is, ``top_p`` for its plain nucleus; ``shuffled``: the number of the control's
shuffle, 0 for the correction itself. ``kl``, ``nll`` empty where tokens are cut off; ``distance``: total variation
between what base and variant sample from; ``right``: the top-1 token is the text's.
"""
