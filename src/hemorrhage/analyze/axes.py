"""Damage curves: which variants lie on one, and at which distance from the base."""

from __future__ import annotations

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

    It starts at the model ``on``, which its variants alter: the base, or another variant.
    """

    sweep: str
    curve: str
    identity: str
    name: str
    family: str
    method: str
    axis: str
    on: str
    variants: list[Variant]
    failed: list[Variant]


def sweeps(inputs: Inputs) -> list[Sweep]:
    """Group the variants by curve, in the order in which their first variants were given.

    A curve is called by its sweep; where a sweep has several, those after the first add what distinguishes them.
    """
    grouped: dict[tuple[str, str, str], list[Variant]] = {}
    for variant in inputs.variants.values():
        if variant.name != BASE:
            grouped.setdefault((variant.sweep, variant.identity, variant.on), []).append(variant)
    seen: set[str] = set()
    curves = []
    for (sweep, identity, on), members in grouped.items():
        whole = [variant for variant in members if failure(inputs, variant) is None]
        first = whole[0] if whole else members[0]
        curve = first.curve
        name = f"{sweep} {curve or 'defaults'}" if sweep in seen else sweep
        seen.add(sweep)
        failed = [variant for variant in members if variant not in whole]
        curves.append(Sweep(sweep, curve, identity, name, first.family, first.method, first.axis, on, whole, failed))
    return curves


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
