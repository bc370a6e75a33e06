"""Why a variant's perplexity is above twice the base's: too strong a compression, or a bad calibration.

arXiv 2503.23924 names both for this failure signature. Two tests separate them:

- The same strength with other calibration: another set, no calibration text, a random choice, shuffled information. If
  one of these is surely below twice the base's perplexity, the calibration is the cause.
- A smaller strength with the same calibration. If one is surely below twice the base's perplexity, and the calibration
  is not to blame, the strength is the cause.

The calibration is not to blame where the method reads no text, where another set does no better, or where the method
surely does less damage than without what it learned. What is as damaged at every smaller strength has neither cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from hemorrhage.analyze.axes import FEWER_IS_WORSE
from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.verdicts.evidence import (
    AGREE,
    CONTRADICTED,
    LEAST_METHODS,
    NOT_DECIDED,
    NOT_MEASURED,
    SUPPORTED,
    Damage,
    Evidence,
    Finding,
)
from hemorrhage.analyze.verdicts.flags import COLLAPSED
from hemorrhage.analyze.verdicts.limits import Point
from hemorrhage.analyze.verdicts.mapping import COMPRESSION, MODIFICATIONS

STRENGTH = "too aggressive"
CALIBRATION = "badly calibrated"
NEITHER = "neither"
OPEN = "not decided"

FAMILIES = (*MODIFICATIONS[COMPRESSION], "activation_quantization")

OTHER_SET, UNINFORMED, SHUFFLED = "with another calibration", "without calibration", "with shuffled calibration"

AS_MUCH = 0.1
"""A smaller strength does as much damage where it surely does all but this share of it, in ln of perplexity."""


@dataclass(frozen=True)
class Arm:
    """A variant to compare with, of the same strength or a smaller one, and its damage.

    ``is_worse``: it is surely damaged more than the variant; ``as_much``: surely about as much, or more.
    """

    name: str
    kind: str
    point: Point
    is_worse: bool = False
    as_much: bool = False


@dataclass(frozen=True)
class Cause:
    """Why a variant's perplexity is above twice the base's, and the comparisons that say so.

    ``estimate`` with its interval: ln of the perplexity over the base's, mean over corpora.
    """

    variant: str
    method: str
    cause: str
    evidence: str
    estimate: float
    low: float
    high: float

    def as_json(self) -> dict[str, Json]:
        """Plain content."""
        return asdict(self)


def causes(evidence: Evidence) -> list[Cause]:
    """Find the cause for every variant whose perplexity is surely above twice the base's."""
    return list(_causes(evidence))


def _causes(evidence: Evidence) -> Iterator[Cause]:
    for variant in evidence.variants(*FAMILIES):
        own = evidence.damage(variant.name)
        if own is None or not _point(variant, own).is_lost:
            continue
        same, milder = _same_strength(evidence, variant, own), _milder(evidence, variant, own)
        cause, why = explain(_point(variant, own), bool(variant.manifest.get("calibrated")), same, milder)
        yield Cause(variant.name, variant.method, cause, why, own.value, own.low, own.high)


def explain(own: Point, is_calibrated: bool, same: Sequence[Arm], milder: Sequence[Arm]) -> tuple[str, str]:
    """Return the cause and the comparisons behind it.

    ``same``: arms of the same strength, ``milder``: of smaller ones, the smallest first. ``is_calibrated``: the
    variant's method reads calibration text; one that reads none has no calibration to blame.
    """
    rescued = next((arm for arm in same if arm.point.is_fine), None)
    if is_calibrated and rescued:
        return CALIBRATION, f"{_shown(rescued)} is below twice, at the same strength {rescued.kind}"
    cleared = _cleared(same) if is_calibrated else "it reads no calibration text"
    if not cleared:
        tried = ", ".join(f"{_shown(arm)} {arm.kind}" for arm in same)
        seen = f"{tried} decides nothing" if tried else "nothing of the same strength has another calibration or none"
        return OPEN, f"is the calibration to blame? {seen}"
    fine = next((arm for arm in reversed(milder) if arm.point.is_fine), None)
    if fine:
        return STRENGTH, f"{cleared}; {_shown(fine)} is below twice, at a smaller strength"
    if not milder:
        return OPEN, f"{cleared}; its curve has no smaller strength"
    if own.high < COLLAPSED and all(arm.as_much for arm in milder):
        return NEITHER, f"{cleared}; as much damage at every smaller strength, such as {_shown(milder[0])}"
    return OPEN, f"{cleared}; no smaller strength is surely below twice"


def _cleared(same: Sequence[Arm]) -> str:
    """Say why the calibration is not to blame; empty where it may be.

    A shuffled control that does worse says nothing: shuffling may do harm of its own.
    """
    for arm in same:
        if arm.kind == OTHER_SET and arm.point.is_lost:
            return f"{_shown(arm)} {arm.kind} is above twice, too"
        if arm.kind == UNINFORMED and arm.is_worse:
            return f"{_shown(arm)} {arm.kind} is damaged more"
    return ""


def judge(lost: Sequence[Cause]) -> Finding:
    """Judge that such a perplexity means one of the two, by the variants of which the cause could be decided."""
    if not lost:
        return Finding(NOT_MEASURED, "no variant is surely above twice the base's perplexity")
    number = {each: [one for one in lost if one.cause == each] for each in (STRENGTH, CALIBRATION, NEITHER, OPEN)}
    decided = [one for one in lost if one.cause != OPEN]
    measured = f"{len(lost)} variants are above twice the base's perplexity: " + ", ".join(
        f"{len(members)} {cause}" for cause, members in number.items()
    )
    if not decided:
        return Finding(NOT_DECIDED, measured)
    explained, methods = len(decided) - len(number[NEITHER]), {one.method for one in decided}
    verdict = NOT_DECIDED
    if len(methods) < LEAST_METHODS:
        measured += f"; one method decides nothing, {LEAST_METHODS} are needed"
    elif explained >= AGREE * len(decided):
        verdict = SUPPORTED
    elif len(number[NEITHER]) >= AGREE * len(decided):
        verdict = CONTRADICTED
    share, unit = explained / len(decided), "share of the decided that has one of the two causes"
    return Finding(verdict, measured, share, unit=unit, comparisons=len(decided))


def _point(variant: Variant, damage: Damage) -> Point:
    return Point(_strength(variant), damage.value, damage.low, damage.high)


def _strength(variant: Variant) -> float:
    return -variant.severity if variant.axis in FEWER_IS_WORSE else variant.severity


def _shown(arm: Arm) -> str:
    return f"{arm.name} ({math.exp(min(arm.point.value, 700.0)):.3g} times)"


def _same_strength(evidence: Evidence, variant: Variant, own: Damage) -> list[Arm]:
    arms = []
    for other in evidence.inputs.variants.values():
        kind = _kind(variant, other)
        if kind and other.name not in (variant.name, BASE):
            arms += _arms(evidence, other, kind, own)
    return arms


def _kind(variant: Variant, other: Variant) -> str:
    """Say what another variant of the same strength has in place of the calibration; empty where it is no such one."""
    if (other.family, other.severity, other.on) != (variant.family, variant.severity, variant.on):
        return ""
    if other.method == variant.method:
        if other.settings == variant.settings:
            return OTHER_SET if _calibration(other) != _calibration(variant) else ""
        if other.is_shuffled:
            return SHUFFLED if other.settings == {**variant.settings, "shuffled": True} else ""
        return UNINFORMED if other.is_control else ""
    is_plain = not other.is_control and not other.manifest.get("calibrated") and other.identity == variant.identity
    common = set(other.settings) & set(variant.settings)
    return UNINFORMED if is_plain and all(other.settings[key] == variant.settings[key] for key in common) else ""


def _calibration(variant: Variant) -> tuple[list[str], int, int | None, int | None]:
    """Return the corpora and the number of tokens that a variant was calibrated on, the draw's seed, and its own."""
    read = variant.manifest.get("calibration") or {}
    return read.get("corpora", []), read.get("tokens", 0), read.get("seed"), variant.seed


def _milder(evidence: Evidence, variant: Variant, own: Damage) -> list[Arm]:
    """List the smaller strengths of the variant's curve, the smallest first."""
    curve = [
        other
        for other in evidence.variants(variant.family)
        if (other.sweep, other.identity) == (variant.sweep, variant.identity)
        and _strength(other) < _strength(variant)
        and _calibration(other) == _calibration(variant)
    ]
    return [
        arm for other in sorted(curve, key=_strength) for arm in _arms(evidence, other, "at a smaller strength", own)
    ]


def _arms(evidence: Evidence, other: Variant, kind: str, own: Damage) -> list[Arm]:
    """Return the arm of a variant, none where it was not measured; compared over the resamples that both share."""
    damage = evidence.damage(other.name)
    if damage is None:
        return []
    confidence, blocks = evidence.spec.confidence, evidence.blocks()
    low, _ = bootstrap.interval(damage.replicates - own.replicates, confidence, blocks)
    nearly, _ = bootstrap.interval(damage.replicates - (1 - AS_MUCH) * own.replicates, confidence, blocks)
    return [Arm(other.name, kind, _point(other, damage), is_worse=low > 0, as_much=nearly > 0)]
