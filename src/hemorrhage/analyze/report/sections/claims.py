"""Claims of the study, with what this run says of them."""

from __future__ import annotations

from dataclasses import dataclass

from hemorrhage.analyze.study import Study


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


def section(study: Study) -> list[Row]:
    """Return the rows of a study."""
    return [
        Row(
            claim=claim.claim,
            source=claim.source,
            verdict=claim.finding.verdict,
            measured=claim.finding.measured,
            number=number(claim.finding.unit, claim.finding.estimate, claim.finding.low, claim.finding.high),
            grade=claim.grade,
            grade_reason=claim.grade_reason,
            study_grade=claim.study_grade,
        )
        for claim in study.claims
    ]


def number(unit: str, estimate: float | None, low: float | None, high: float | None) -> str:
    """Write what was measured of a claim, with its interval."""
    if estimate is None:
        return ""
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{unit}: {estimate:.3g}{interval}"
