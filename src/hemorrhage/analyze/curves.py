"""Damage curves: which variants lie on one, and at which distance from the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemorrhage.analyze import thresholds
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows import Results
from hemorrhage.analyze.spec import Spec

AXES = {
    "bits": "effective bits per parameter",
    "activation_bits": "bits of an activation",
    "cache_bits": "bits of a cached key or value",
    "sparsity": "share of zeros in the pruned layers",
    "removed": "share of the blocks' parameters removed",
    "added": "share of parameters added",
    "routing": "share of the routing disturbed",
    "steps": "steps of training",
}
"""What a sweep's severity means. The bits axis uses the bits that were measured, not those of the label."""

FEWER_IS_WORSE = ("bits", "activation_bits", "cache_bits")
"""Axes on which damage grows as the number falls."""

FULL_BITS = 16.0
"""Where an unquantized activation or cache stands on its axis."""


@dataclass(frozen=True)
class Sweep:
    """One curve of a sweep: its variants in the order of params.yaml, failed ones apart.

    It starts at the model ``on``, which its variants alter: the base, or another variant.
    """

    sweep: str
    curve: str
    name: str
    family: str
    method: str
    axis: str
    on: str
    variants: list[Variant]
    failed: list[Variant]


def sweeps(inputs: Inputs) -> list[Sweep]:
    """All curves, in the order in which their first variants were given.

    A curve is called by its sweep; where a sweep has several, those after the first add what sets them apart.
    """
    grouped: dict[tuple[str, str], list[Variant]] = {}
    for variant in inputs.variants.values():
        if variant.name != BASE:
            grouped.setdefault((variant.sweep, variant.curve), []).append(variant)
    seen: set[str] = set()
    found = []
    for (sweep, curve), members in grouped.items():
        whole = [variant for variant in members if failure(inputs, variant) is None]
        first = whole[0] if whole else members[0]
        name = f"{sweep} {curve}" if sweep in seen and curve else sweep
        seen.add(sweep)
        failed = [variant for variant in members if variant not in whole]
        axis, on = first.axis, first.on
        found.append(Sweep(sweep, curve, name, first.family, first.method, axis, on, whole, failed))
    return found


def failure(inputs: Inputs, variant: Variant) -> str | None:
    """Why a variant has no measured damage: it was not made, not evaluated, or its evaluation failed."""
    if variant.failure is not None:
        return variant.failure
    if variant.name not in inputs.evaluations:
        return None if variant.name == BASE else "not evaluated"
    return inputs.evaluations[variant.name].failure


def position(variant: Variant) -> float:
    """Where a variant stands on its axis: measured effective bits, else the severity."""
    bits = variant.axis == "bits"
    return float(variant.manifest["effective_bits"]) if bits else variant.severity


def undamaged(inputs: Inputs, axis: str, on: str = BASE) -> float:
    """Where the model that is altered stands on an axis."""
    if axis == "bits":
        return float(inputs.variants[on].manifest["effective_bits"])
    return FULL_BITS if axis in FEWER_IS_WORSE else 0.0


def find_thresholds(inputs: Inputs, results: Results, spec: Spec) -> list[dict[str, Any]]:
    """The content of thresholds.json: an entry per curve and corpus."""
    return [_entry(inputs, results, spec, sweep, corpus) for sweep in sweeps(inputs) for corpus in results.blocks]


def _entry(inputs: Inputs, results: Results, spec: Spec, sweep: Sweep, corpus: str) -> dict[str, Any]:
    measured = [variant for variant in sweep.variants if (variant.name, corpus) in results.replicates]
    failed = failure(inputs, inputs.variants[sweep.on]) is not None
    start = 0.0 if failed else undamaged(inputs, sweep.axis, sweep.on)
    entry: dict[str, Any] = {
        "sweep": sweep.sweep,
        "curve": sweep.curve,
        "name": sweep.name,
        "family": sweep.family,
        "method": sweep.method,
        "corpus": corpus,
        "axis": sweep.axis,
        "unit": AXES.get(sweep.axis, sweep.axis),
        "on": sweep.on,
        "base": start,
        "points": len(measured),
        "missing": {variant.name: failure(inputs, variant) for variant in sweep.failed},
    }
    if not measured or failed:
        none = {"answer": thresholds.TOO_FEW, "reason": "no variant of this curve was measured"}
        return {**entry, "two_fold": none, "knee": none}
    sign = -1.0 if sweep.axis in FEWER_IS_WORSE else 1.0
    distances = np.array([sign * (position(variant) - start) for variant in measured])
    replicates = np.stack([results.replicates[variant.name, corpus] for variant in measured], axis=1)
    ratios = _ratios(results, corpus, [variant.name for variant in measured])
    if sweep.on != BASE:
        # What this alteration adds to the one before it.
        ratios = ratios - _ratios(results, corpus, [sweep.on])
        replicates = replicates - results.replicates[sweep.on, corpus][:, None]
    curve = thresholds.curve(distances, ratios, replicates, results.blocks[corpus])

    def place(distance: float) -> float:
        return start + sign * distance

    return {
        **entry,
        "two_fold": _on_axis(thresholds.two_fold(curve, spec.confidence), place, sign),
        "knee": _on_axis(thresholds.bend(curve, spec.confidence), place, sign),
    }


def _ratios(results: Results, corpus: str, variants: list[str]) -> np.ndarray:
    rows = results.rows
    chosen = rows[(rows["dataset"] == corpus) & rows["metric"].str.startswith("ln_perplexity_ratio[")]
    return chosen.set_index("variant").loc[variants, "estimate"].to_numpy(float)


def _on_axis(found: dict[str, Any], place: Callable[[float], float], sign: float) -> dict[str, Any]:
    """Turn distances from the base into places on the axis; on the bits axis low and high change sides."""
    turned = dict(found)
    for key in ("estimate", "low", "high"):
        if found.get(key) is not None:
            turned[key] = place(found[key])
    if "between" in found:
        turned["between"] = sorted(place(distance) for distance in found["between"])
    if sign < 0 and "low" in turned:
        turned["low"], turned["high"] = turned["high"], turned["low"]
    return turned
