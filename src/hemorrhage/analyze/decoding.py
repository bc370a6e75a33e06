"""Rows of decoding strategies, with blocks that are prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze import bootstrap
from hemorrhage.analyze.bootstrap import Floats
from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.schema import made_in, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.decode.degeneration import distinct_n, loop_period, rep_n

OPEN_METRICS = ("distinct_2", "distinct_3", "rep_4", "loop_rate", "base_nll", "length")
"""Per decoding strategy on continuations: means over texts; loop_rate is the share that ends in a loop, base_nll in
nats per token, length in tokens."""

SPREAD_METRICS = ("spread_over_max", "spread_over_min", "spread_cv", "spread_by_chance")
"""Per variant, of the accuracy over strategies: (max - min) / max, (max - min) / min, standard deviation
over mean; and what (max - min) / max stays below, at the confidence asked for, when all are equally good."""

ALL_STRATEGIES = "all strategies"
DECODE = "decode"


def decoding_rows(variant: Variant, output: Output, spec: Spec) -> Iterator[dict[str, Any]]:
    """Rows of one variant under every strategy."""
    environment = made_in(output.manifest)
    protocols = output.manifest.get("protocol", {})
    about: dict[str, Any] = {
        "sweep": DECODE,
        "family": DECODE,
        "curve": "",
        "axis": "",
        "severity": math.nan,
        "seed": output.manifest.get("seed"),
        "environment": environment,
    }
    if output.failure is not None:
        fields = {
            "method": ALL_STRATEGIES,
            "setting": ALL_STRATEGIES,
            "status": "failed",
            "reason": output.failure,
        }
        yield row(variant, "accuracy", **{**about, **fields})
        return
    texts = output.tables["generations.parquet"]
    hashes = {name: fact["sha256"] for name, fact in output.manifest["datasets"].items()}
    for (kind, dataset), part in texts.groupby(["task", "dataset"], sort=False):
        about.update(dataset=dataset, data=hashes[dataset], protocol=protocols[dataset])
        for strategy, generated in part.groupby("strategy", sort=False):
            fields = {**about, "method": strategy, "setting": _settings(generated["settings"].iloc[0])}
            measured = _closed(generated, spec) if kind == "closed" else _open(generated, spec)
            for metric, found in measured.items():
                yield row(variant, metric, **{**fields, **found})
        if kind == "closed":
            for metric, fields in _spread(part, spec).items():
                yield row(
                    variant,
                    metric,
                    **{**about, "method": ALL_STRATEGIES, "setting": ALL_STRATEGIES, **fields},
                )


def _settings(text: str) -> str:
    settings = {key: value for key, value in json.loads(text).items() if key != "strategy"}
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings"


def _closed(generated: pd.DataFrame, spec: Spec) -> dict[str, dict[str, Any]]:
    right, n = int(generated["correct"].sum()), len(generated)
    low, high = bootstrap.wilson(right, n, spec.confidence)
    return {"accuracy": {"estimate": right / n, "low": low, "high": high, "n": n}}


def _open(generated: pd.DataFrame, spec: Spec) -> dict[str, dict[str, Any]]:
    """Means over texts of what each text shows by itself."""
    tokens = [[int(token) for token in text] for text in generated["tokens"]]
    values = {
        "distinct_2": [distinct_n(text, 2) for text in tokens],
        "distinct_3": [distinct_n(text, 3) for text in tokens],
        "rep_4": [rep_n(text, 4) for text in tokens],
        "loop_rate": [float(loop_period(text) > 0) for text in tokens],
        "base_nll": generated["base_nll"].to_list(),
        "length": [len(text) for text in tokens],
    }
    return {metric: _mean(np.asarray(column, dtype=np.float64), spec) for metric, column in values.items()}


def _mean(values: Floats, spec: Spec) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"status": "undefined", "reason": "every text is too short"}
    counts = bootstrap.draws("open", len(values), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ values / len(values), spec.confidence, len(values))
    return {"estimate": float(values.mean()), "low": low, "high": high, "n": len(values)}


def _spread(generated: pd.DataFrame, spec: Spec) -> dict[str, dict[str, Any]]:
    right = generated.pivot(index="item", columns="strategy", values="correct").to_numpy(float)
    items, strategies = right.shape
    if strategies < 2:
        return {}
    counts = bootstrap.draws("closed", items, spec.resamples, spec.seed)
    estimates = spreads(right.mean(axis=0, keepdims=True))
    resampled = spreads(counts @ right / items)
    fields: dict[str, dict[str, Any]] = {}
    for metric, (value,) in estimates.items():
        if not math.isfinite(value):
            reason = "the worst strategy gets nothing right"
            fields[metric] = {"status": "undefined", "reason": reason, "n": items}
            continue
        usable = resampled[metric][np.isfinite(resampled[metric])]
        low, high = bootstrap.interval(usable, spec.confidence, items)
        fields[metric] = {"estimate": float(value), "low": low, "high": high, "n": items}
    chance = spread_by_chance(right, spec)
    fields["spread_by_chance"] = {"estimate": chance, "n": items}
    return fields


def spreads(accuracies: Floats) -> dict[str, Floats]:
    """Spread metrics of ``[samples, strategies]``; not finite where they divide by nought."""
    high, low = accuracies.max(axis=1), accuracies.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "spread_over_max": (high - low) / high,
            "spread_over_min": (high - low) / low,
            "spread_cv": accuracies.std(axis=1) / accuracies.mean(axis=1),
        }


def spread_by_chance(right: Floats, spec: Spec) -> float:
    """Level that (max - min) / max reaches by chance: each item's outcomes shuffled among the strategies."""
    generator = np.random.default_rng([spec.seed, 1])
    shuffled = generator.permuted(np.broadcast_to(right, (spec.resamples, *right.shape)), axis=2)
    found = spreads(shuffled.mean(axis=1))["spread_over_max"]
    found = np.where(np.isfinite(found), found, 0.0)
    return float(np.quantile(found, spec.confidence))
