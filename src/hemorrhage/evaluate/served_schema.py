"""Columns of what the served step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

_NATS = pa.Check.ge(0)
# Rounding may leave a distribution that equals its reference a hair below zero.
_DIVERGENCE = pa.Check.ge(-1e-3)

SERVED = pa.DataFrameSchema(
    {
        "corpus": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "position": pa.Column("int64", pa.Check.ge(1)),
        "nll": pa.Column("float32", _NATS),
        "nll_weights": pa.Column("float32", _NATS),
        "base_nll": pa.Column("float32", _NATS),
        "kl": pa.Column("float32", _DIVERGENCE),
        "kl_weights": pa.Column("float32", _DIVERGENCE),
        "kl_kernels": pa.Column("float32", _DIVERGENCE),
        "same_top1": pa.Column(bool),
        "same_top1_weights": pa.Column(bool),
        "same_top1_kernels": pa.Column(bool),
    },
    strict=True,
)
"""``tokens.parquet``: a row per predicted token that counts.

``nll`` (nats), ``kl`` and ``same_top1``: the engine's beside the base's in float32; ``..._weights``: our float32
reading of the checkpoint beside the base's; ``..._kernels``: the engine's beside our reading. KL is of what is named
last from what it is beside.
"""
