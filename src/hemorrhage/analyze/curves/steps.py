"""The positions on an axis that a curve's setting can have, and the bits that it is called by there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.axes import Sweep, position
from hemorrhage.analyze.inputs import Variant
from hemorrhage.analyze.stats.bootstrap import Floats


@dataclass(frozen=True)
class Line:
    """Measured bits over the bits of the setting: scales, zero points and what stays unquantized add a constant."""

    slope: float
    constant: float

    def position(self, bits: Floats) -> Floats:
        """Return the measured bits of settings."""
        return self.slope * bits + self.constant

    def bits(self, position: float) -> float:
        """Return the bits of the setting that measures so many."""
        return (position - self.constant) / self.slope


def line(variants: list[Variant]) -> Line | None:
    """Fit measured bits to the bits of the setting; None where the variants are fewer than two widths."""
    bits = np.array([variant.severity for variant in variants])
    if len(np.unique(bits)) < 2:
        return None
    slope, constant = np.polyfit(bits, [position(variant) for variant in variants], 1)
    return Line(float(slope), float(constant)) if slope > 0 else None


def positions(sweep: Sweep, start: float) -> Floats | None:
    """Return the positions that the setting of a curve can have, ascending, the start's among them.

    None where it may be any number, such as a share of weights, or where its values are not known.
    """
    measured = np.array([position(variant) for variant in sweep.variants])
    possible = _by_blocks(sweep, measured) if sweep.variants[0].info.by_blocks else _by_bits(sweep, measured)
    return None if possible is None else np.unique(np.round([*possible, *measured, start], 9))


def _by_blocks(sweep: Sweep, measured: Floats) -> Floats | None:
    """Return the shares of whole blocks; those that were measured need not be exact, for blocks may differ in size."""
    numbers = {count_blocks(variant) for variant in sweep.variants}
    number = numbers.pop() if len(numbers) == 1 else None
    if number is None:
        return None
    shares = np.arange(round(max(1.0, float(measured.max())) * number) + 1) / number
    others: Floats = shares[np.abs(shares[:, None] - measured).min(axis=1) > 0.5 / number]
    return others


def _by_bits(sweep: Sweep, measured: Floats) -> Floats | None:
    """Return the positions of whole bits, where a method has no others."""
    values = sweep.variants[0].info.values
    if values is None or not values.whole:
        return None
    bits = np.array(values.values(), dtype=np.float64)
    if sweep.axis != "bits":
        return bits if np.isin(measured, bits).all() else None
    widths = line(sweep.variants)
    return None if widths is None else widths.position(bits)


def count_blocks(variant: Variant) -> int | None:
    """Count the blocks of the model that was altered, from what is left or was added."""
    layers: int | None = variant.manifest.get("layers")
    if not layers:
        return None
    grown = 1 + variant.severity if variant.axis == "added" else 1 - variant.severity
    return round(layers / grown)
