"""Outputs that could not be made."""

from __future__ import annotations

from typing import NamedTuple

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.inputs import BASE, Inputs


class Failure(NamedTuple):
    """An output that could not be made, and why."""

    variant: str
    step: str
    reason: str


def count_variants(inputs: Inputs) -> tuple[int, int]:
    """Count the variants, and those among them that failed."""
    variants = [variant for variant in inputs.variants.values() if variant.name != BASE]
    return len(variants), sum(failure(inputs, variant) is not None for variant in variants)


def failures(inputs: Inputs) -> list[Failure]:
    """List every output that could not be made, with its step and reason."""
    failed = []
    for variant in inputs.variants.values():
        reason = failure(inputs, variant)
        if reason is not None:
            failed.append(Failure(variant.name, "compress" if variant.failure else "evaluate", reason))
    for outputs in inputs.served.values():
        for name, output in outputs.items():
            if output.failure is not None and all(name != each.variant for each in failed):
                failed.append(Failure(name, f"in {output.manifest['engine']['title']}", output.failure))
    decodes = ((name, output.failure) for name, output in inputs.decodes.items())
    return failed + [Failure(name, "decode", reason) for name, reason in decodes if reason is not None]
