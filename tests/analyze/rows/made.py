"""Variants, evaluations and rows with chosen content."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import describe


def variant(name: str, method: str, settings: Any, on: str = "base", seed: int = 0, **manifest: Any) -> Variant:
    content = {**describe(method_of(method), settings), **manifest}
    sweep = name.partition("-")[0]
    axis, severity = settings.axis, settings.severity
    return Variant(
        name, sweep, "f", method, settings.curve, "", axis, severity, seed, on, cast(CheckpointManifest, content)
    )


def inputs_of(*variants: Variant) -> Inputs:
    base = Variant("base", "base", "base", "base", "", "", "", math.nan, None, "base", {"effective_bits": 16.0})
    return Inputs({}, {"base": base, **{one.name: one for one in variants}}, {}, {}, {}, {}, {})


def evaluation(kl: float, seed: int) -> Output:
    rng = np.random.default_rng(seed)
    window = np.repeat(np.arange(24), 50)
    values = kl * rng.lognormal(0, 0.3, 24)[window]
    table = pd.DataFrame({"corpus": "prose", "window": window, "kl": values, "nll": 3 + values, "base_nll": 3.0})
    protocol = 'window=51 stride=51 windows=24/99 bos=0 join="" predicted=1200 dtype=float32'
    return Output({"corpora": {"prose": {"protocol": protocol, "sha256": "ab"}}}, {"tokens.parquet": table})


def row(variant: str, metric: str, estimate: float, half: float = math.nan, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "variant": variant,
        "family": "weight_quantization",
        "method": "rtn",
        "metric": metric,
        "dataset": "prose",
    }
    content |= {"estimate": estimate, "low": estimate - half, "high": estimate + half, "n": 16, "p": 0.1, "q": 0.1}
    content |= {"mde": 0.1, "protocol": "w=1", "data": "abc", "status": "ok", "reason": ""}
    return {**content, **more}
