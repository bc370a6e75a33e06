"""Claims of the study, with what this run says of them, the map of modifications and patterns, causes of collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.causes import Cause
from hemorrhage.analyze.verdicts.mapping import UNITS, Effect


@dataclass(frozen=True)
class Row:
    """A claim and its verdict."""

    claim: str
    source: str
    verdict: str
    measured: str
    number: str
    grade: str
    grade_reason: str
    study_grade: str
    on_its_source: str
    generality: str


@dataclass(frozen=True)
class MapRow:
    """A modification and its effects, in the order of the patterns: (number, of how many models or why)."""

    modification: str
    effects: list[tuple[str, str]]


@dataclass(frozen=True)
class DoubledRow:
    """A variant of more than twice the base's perplexity: how many times, with the interval, and the cause."""

    variant: str
    times: str
    cause: str
    evidence: str


@dataclass(frozen=True)
class Section:
    """The claims; the map: ``patterns`` with their units, and a row for each modification; and why variants have more
    than twice the base's perplexity."""

    rows: list[Row]
    patterns: list[tuple[str, str]]
    map: list[MapRow]
    doubled: list[DoubledRow]


def section(study: Study) -> Section:
    """Return the section of a study."""
    rows = [
        Row(
            claim=claim.claim,
            source=claim.source,
            verdict=claim.finding.verdict,
            measured=claim.finding.measured,
            number=number(claim.finding.unit, claim.finding.estimate, claim.finding.low, claim.finding.high),
            grade=claim.grade,
            grade_reason=claim.grade_reason,
            study_grade=claim.study_grade,
            on_its_source=claim.on_its_source,
            generality=claim.generality,
        )
        for claim in study.claims
    ]
    modifications = dict.fromkeys(effect.modification for effect in study.mapping)
    by_place = {(effect.modification, effect.pattern): effect for effect in study.mapping}
    table = [MapRow(name, [_cell(by_place[name, pattern]) for pattern in UNITS]) for name in modifications]
    return Section(rows, list(UNITS.items()), table, [_doubled(cause) for cause in study.doubled])


def _doubled(cause: Cause) -> DoubledRow:
    times, low, high = (math.exp(min(value, 700.0)) for value in (cause.estimate, cause.low, cause.high))
    return DoubledRow(cause.variant, f"{times:.3g} ({low:.3g} to {high:.3g})", cause.cause, cause.evidence)


def _cell(effect: Effect) -> tuple[str, str]:
    if effect.reason:
        return "–" if effect.estimate is None else f"{effect.estimate:.3g}", effect.reason
    models = f"{effect.models} {'strategies' if effect.modification == 'decoding' else 'models'}"
    return number("", effect.estimate, effect.low, effect.high), models


def number(unit: str, estimate: float | None, low: float | None, high: float | None) -> str:
    """Write what was measured of a claim, with its interval."""
    if estimate is None:
        return ""
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{unit}: {estimate:.3g}{interval}" if unit else f"{estimate:.3g}{interval}"
