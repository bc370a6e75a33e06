"""Columns of what the served step writes; checked before anything is saved."""

from __future__ import annotations

import pandera.pandas as pa

_NATS = pa.Check.ge(0)
# A server may round a log-probability of 0 up.
_NEARLY_NATS = pa.Check.ge(-1e-3)
# Rounding may leave a distribution that equals its reference a hair below zero.
_DIVERGENCE = pa.Check.ge(-1e-3)
_SHARE = pa.Check.isin([0, 1])

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

ASKED = pa.DataFrameSchema(
    {
        "corpus": pa.Column(str),
        "window": pa.Column("int64", pa.Check.ge(0)),
        "position": pa.Column("int64", pa.Check.ge(1)),
        "nll": pa.Column("float32", _NEARLY_NATS, nullable=True),
        "nll_weights": pa.Column("float32", _NATS),
        "base_nll": pa.Column("float32", _NATS),
        "kl_low": pa.Column("float32", _NATS),
        "kl_high": pa.Column("float32", _NATS),
        "kl_weights": pa.Column("float32", _DIVERGENCE),
        "kernels_low": pa.Column("float32", _NATS),
        "kernels_high": pa.Column("float32", _NATS),
        "same_top1": pa.Column("float32", _SHARE, nullable=True),
        "same_top1_weights": pa.Column("float32", _SHARE),
        "same_top1_kernels": pa.Column("float32", _SHARE, nullable=True),
    },
    checks=[
        pa.Check(lambda rows: rows["kl_low"] <= rows["kl_high"], error="kl_low lies above kl_high"),
        pa.Check(lambda rows: rows["kernels_low"] <= rows["kernels_high"], error="kernels_low lies above kernels_high"),
    ],
    strict=True,
)
"""``tokens.parquet`` of a server over HTTP: the same, with two ends of each KL that the server has a part in.

``kl_high`` and ``kernels_high`` are infinite where nothing bounds them; ``nll`` is empty of a token that the server
gives no log-probability, ``same_top1`` where it names no likeliest token.
"""
