"""Where the budget falls on each curve: the last point inside, the first outside, and what a screening added there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class Brackets:
    """The part of the section that says where the study looked."""

    text: str
    rows: list[BracketRow]
    confirmation: str


def section(study: Study) -> Brackets | None:
    """Return the part of a study; None where nothing was screened."""
    bracket = study.inputs.bracket
    if bracket is None:
        return None
    screened = {each.variant: each for each in bracket.screened}
    rows = [_row(curve, screened) for curve in bracket.curves]
    return Brackets(_text(bracket), rows, confirmation_text(study))


def confirmation_text(study: Study) -> str:
    """Say what was measured on fresh text, and whether that is enough; empty where nothing was confirmed."""
    names = list(study.inputs.confirmations)
    if not names:
        return ""
    sizes: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    rows = deciding(study.rows).set_index(["variant", "metric", "dataset"])
    for verdict in (verdict for verdict in study.verdicts if verdict.variant.name in names):
        for check in verdict.checks:
            key = (verdict.variant.name, check.metric, check.dataset)
            if check.level is not None and key in rows.index:
                row = {str(name): value for name, value in rows.loc[key].items()}
                needed = confirming(check.kind, row, check.limit, check.level, study.spec.confidence)
                sizes.setdefault((check.kind, check.dataset), []).append((check.n, needed))
    return " ".join([f"Judged on text and items that nothing before has read: {', '.join(names)}.", *_powers(sizes)])


def _powers(sizes: Mapping[tuple[str, str], Sequence[tuple[int, int | None]]]) -> Iterator[str]:
    """Say for each limit how many windows or items decide, with a power of 80 %."""
    for (kind, dataset), of_variants in sizes.items():
        needed = [number for _, number in of_variants if number is not None]
        if needed:
            unit, measured, most = DAMAGE_KINDS[kind].unit, min(n for n, _ in of_variants), max(needed)
            verdict = "enough" if measured >= most else "too few"
            yield (
                f"{kind} on {dataset}: {measured:,} {unit}, {verdict}; {most:,} call a variant at 1/{CONFIRMED:g} of "
                "the limit inside in four of five cases."
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
