"""Damage curves: which variants lie on one, and at which distance from the base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.inputs import BASE, Inputs, Variant

AXES = {
    "bits": "effective bits per parameter",
    "activation_bits": "bits of an activation",
    "cache_bits": "bits of a cached key or value",
    "sparsity": "share of zeros in the pruned layers",
    "removed": "share of the blocks' parameters removed",
    "added": "share of parameters added",
    "routing": "share of the routing disturbed",
    "noise": "noise as a share of a layer's spread",
    "transform": "strength of a transform that changes no output",
    "steps": "steps of training",
}
"""What a sweep's severity means. The bits axis uses the bits that were measured, not those of the label."""

FEWER_IS_WORSE = ("bits", "activation_bits", "cache_bits")
"""Axes on which damage grows as the number falls."""

FULL_BITS = 16.0
"""Position of an unquantized activation or cache on its axis."""


@dataclass(frozen=True)
class Sweep:
    """One curve of a sweep: its variants in the order of params.yaml, those that failed separately.

    It starts at the model ``on``, which its variants alter: the base, or another variant. ``curve`` states what its
    points have in common, with all in which it differs from another curve of its method; ``name`` is the sweep's, with
    ``curve`` where the sweep has several. ``key`` seeds what is drawn for it; other curves of the study do not change
    it.
    """

    sweep: str
    curve: str
    identity: str
    name: str
    key: str
    family: str
    method: str
    axis: str
    on: str
    variants: list[Variant]
    failed: list[Variant]


def sweeps(inputs: Inputs) -> list[Sweep]:
    """Group the variants by curve, in the order in which their first variants were given.

    What repeats a variant with another calibration set is no point of a curve: it tells how far a point moves.
    """
    grouped: dict[tuple[str, str, str], list[Variant]] = {}
    for variant in inputs.variants.values():
        if variant.name != BASE and not variant.is_redrawn:
            grouped.setdefault((variant.sweep, variant.identity, variant.on), []).append(variant)
    whole = {key: [each for each in members if failure(inputs, each) is None] for key, members in grouped.items()}
    firsts = {key: (whole[key] or members)[0] for key, members in grouped.items()}
    number = Counter(sweep for sweep, *_ in grouped)
    seen: set[str] = set()
    curves = []
    for key, members in grouped.items():
        (sweep, identity, on), first = key, firsts[key]
        curve = curve_text(first, [other for other in firsts.values() if other.method == first.method])
        curves.append(
            Sweep(
                sweep=sweep,
                curve=curve,
                identity=identity,
                name=f"{sweep} {curve or 'defaults'}" if number[sweep] > 1 else sweep,
                key=f"{sweep} {first.curve or 'defaults'}" if sweep in seen else sweep,
                family=first.family,
                method=first.method,
                axis=first.axis,
                on=on,
                variants=whole[key],
                failed=[variant for variant in members if variant not in whole[key]],
            )
        )
        seen.add(sweep)
    return curves


def curve_text(variant: Variant, others: Sequence[Variant]) -> str:
    """State what the points of a variant's curve have in common, and all in which it differs from ``others``.

    ``others``: a variant of each curve of its method. A setting at its default is stated where it is another elsewhere.
    """
    defaults = variant.manifest.get("curve_defaults") or {}
    texts = [variant.curve, *(text for name, text in defaults.items() if len(_values(others, name)) > 1)]
    if variant.on == BASE and any(other.on != BASE for other in others):
        texts.append(f"on {BASE}")
    corpora = {tuple(each["corpora"]) for other in others if (each := other.manifest.get("calibration"))}
    calibration = variant.manifest.get("calibration")
    if calibration and len(corpora) > 1:
        texts.append(f"calibrated on {', '.join(calibration['corpora'])}")
    return ", ".join(filter(None, texts))


def _values(variants: Sequence[Variant], name: str) -> set[str]:
    """Return the values of a setting, or of what else an identity has."""
    return {
        json.dumps({**json.loads(each.manifest.get("identity") or "{}"), **each.settings}.get(name))
        for each in variants
    }


def failure(inputs: Inputs, variant: Variant) -> str | None:
    """Say why a variant has no measured damage: it was not made, not evaluated, or its evaluation failed."""
    if variant.failure is not None:
        return variant.failure
    if variant.name not in inputs.evaluations:
        return None if variant.name == BASE else "not evaluated"
    return inputs.evaluations[variant.name].failure


def position(variant: Variant) -> float:
    """Return a variant's position on its axis: measured effective bits, else the severity."""
    bits = variant.axis == "bits"
    return float(variant.manifest["effective_bits"]) if bits else variant.severity


def undamaged_position(inputs: Inputs, axis: str, on: str = BASE) -> float:
    """Return the position of the model that is altered."""
    if axis == "bits":
        return float(inputs.variants[on].manifest["effective_bits"])
    return FULL_BITS if axis in FEWER_IS_WORSE else 0.0
