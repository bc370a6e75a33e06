"""The variants that the analysis would decode: the recommended one, the one at the knee, and one past it.

Snakemake has to know the variants before anything is measured, so params.yaml names them; the report says which a
measured study would name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, position, sweeps
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.verdicts.shipping import Verdict, pick


@dataclass(frozen=True)
class Choice:
    """A role, the variant that fills it (empty: none), why, and whether params.yaml had it decoded."""

    role: str
    variant: str
    why: str
    decoded: bool


def choose(inputs: Inputs, thresholds: Sequence[CurveEntry], verdicts: Sequence[Verdict]) -> list[Choice]:
    """Fill the three roles. The curve is that of the recommended variant, else the longest of quantized weights."""
    picked = pick(verdicts)
    roles = [("recommended", picked.variant.name if picked else "", _reason(picked))]
    curve = _curve(inputs, picked.variant.name if picked else "")
    if curve is None:
        roles += [(role, "", "no sweep has two measured points") for role in ("at the knee", "past the knee")]
    else:
        roles += _around(curve, thresholds)
    return [Choice(role, name, why, name in inputs.decodes) for role, name, why in roles]


def line(choices: Sequence[Choice]) -> str:
    """Write the line of params.yaml that names them."""
    names = list(dict.fromkeys(choice.variant for choice in choices if choice.variant))
    return f"variants: [{', '.join(names)}]"


def _reason(picked: Verdict | None) -> str:
    return "the smallest usable variant inside the budget" if picked else "no usable variant is inside the budget"


def _curve(inputs: Inputs, name: str) -> Sweep | None:
    long = [sweep for sweep in sweeps(inputs) if len(sweep.variants) > 1 and sweep.on == BASE]
    holding = [sweep for sweep in long if name in [variant.name for variant in sweep.variants]]
    fallback = [sweep for sweep in long if sweep.family == "weight_quantization"] or long
    candidates = holding or sorted(fallback, key=lambda sweep: -len(sweep.variants))
    return candidates[0] if candidates else None


def _around(curve: Sweep, thresholds: Sequence[CurveEntry]) -> list[tuple[str, str, str]]:
    """Name the measured variant nearest to the knee, and the next one beyond it."""
    entry = next((entry for entry in thresholds if entry.name == curve.name), None)
    definitions = {"knee": "the knee", "two_fold": "the doubling point, as there is no knee,"}
    for definition, words in definitions.items():
        if entry is None or not (threshold := entry.thresholds[definition]).is_located:
            continue
        sign = -1.0 if curve.axis in FEWER_IS_WORSE else 1.0
        by_damage = sorted(curve.variants, key=lambda variant: sign * position(variant))
        distances = [abs(position(variant) - threshold.estimate) for variant in by_damage]
        nearest = distances.index(min(distances))
        at = (by_damage[nearest].name, f"nearest to {words} of {curve.name} on {entry.corpus}")
        if nearest + 1 < len(by_damage):
            beyond = (by_damage[nearest + 1].name, f"the next of {curve.name} beyond it")
        else:
            beyond = ("", f"{curve.name} ends at the knee")
        return [("at the knee", *at), ("past the knee", *beyond)]
    return [(role, "", f"{curve.name} has no knee and does not double") for role in ("at the knee", "past the knee")]
