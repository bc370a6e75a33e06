"""Where the budget falls on each curve: the last point inside, the first outside, and what a screening added there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.budget import CONFIRMED, DAMAGE_KINDS, confirming, deciding
from hemorrhage.analyze.study import Study
from hemorrhage.bracket.content import Bracket, CurveBracket, Screened


@dataclass(frozen=True)
class BracketRow:
    """A curve: variants with the share of their limit that they use up, and what was added or why nothing was."""

    curve: str
    inside: str
    outside: str
    undecided: str
    added: str


@dataclass(frozen=True)
class PowerRow:
    """A limit, and how many windows or items of fresh text it takes: ``needed`` of a variant at 1/1.5 of it."""

    limit: str
    dataset: str
    measured: str
    needed: str
    verdict: str


@dataclass(frozen=True)
class Brackets:
    """The part of the section that says where the study looked."""

    text: str
    rows: list[BracketRow]
    confirmation: str
    powers: list[PowerRow]


def section(study: Study) -> Brackets | None:
    """Return the part of a study; None where nothing was screened."""
    bracket = study.inputs.bracket
    if bracket is None:
        return None
    screened = {each.variant: each for each in bracket.screened}
    rows = [_row(curve, screened) for curve in bracket.curves]
    return Brackets(_text(bracket), rows, _confirmation(study), powers(study))


def _confirmation(study: Study) -> str:
    names = list(study.inputs.confirmations)
    if not names:
        return ""
    return (
        f"Judged on text and items that nothing before has read: {', '.join(names)}. Enough: a variant whose damage is "
        f"1/{CONFIRMED:g} of the limit is called inside in four of five cases."
    )


def powers(study: Study) -> list[PowerRow]:
    """List for each limit how much fresh text decides it; empty where nothing was confirmed."""
    sizes: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    rows = deciding(study.rows).set_index(["variant", "metric", "dataset"])
    for verdict in (verdict for verdict in study.verdicts if verdict.variant.name in study.inputs.confirmations):
        for check in verdict.checks:
            key = (verdict.variant.name, check.metric, check.dataset)
            if check.level is not None and key in rows.index:
                row = {str(name): value for name, value in rows.loc[key].items()}
                needed = confirming(check.kind, row, check.limit, check.level, study.spec.confidence)
                sizes.setdefault((check.kind, check.dataset), []).append((check.n, needed))
    return [_power(*key, of_variants) for key, of_variants in sizes.items()]


def _power(kind: str, dataset: str, sizes: Sequence[tuple[int, int | None]]) -> PowerRow:
    of_kind, measured = DAMAGE_KINDS[kind], min(n for n, _ in sizes)
    needed = max((number for _, number in sizes if number is not None), default=None)
    return PowerRow(
        limit=of_kind.name,
        dataset=dataset,
        measured=f"{measured:,} {of_kind.unit}",
        needed=f"{needed:,}" if needed is not None else "not known",
        verdict="not known" if needed is None else "enough" if measured >= needed else "too few",
    )


def _text(bracket: Bracket) -> str:
    text = (
        f"Before anything else, what could ship was screened on {bracket.windows} windows of each corpus, and at most "
        f"{bracket.allowance} variants were added where a curve crosses the budget. Percentages are of the limit that "
        "is used up most, as the screening saw it: it decides where to look, never what ships."
    )
    return text + "".join(f" {name} was not screened: {reason}." for name, reason in bracket.failed.items())


def _row(curve: CurveBracket, screened: dict[str, Screened]) -> BracketRow:
    return BracketRow(
        curve=curve.curve,
        inside=_point(curve.inside, screened) if curve.inside else "the unaltered model",
        outside=_point(curve.outside, screened) if curve.outside else "none",
        undecided=", ".join(_point(name, screened) for name in curve.undecided) or "none",
        added=", ".join(curve.added) or f"nothing: {curve.reason}",
    )


def _point(name: str, screened: dict[str, Screened]) -> str:
    return f"{name} ({100 * screened[name].used:.0f}\u00a0%)"
