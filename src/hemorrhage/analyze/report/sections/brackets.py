"""Where the budget falls on each curve: the last point inside, the first outside, and what a screening added there."""

from __future__ import annotations

from dataclasses import dataclass

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


def section(bracket: Bracket | None) -> Brackets | None:
    """Return the part of a study; None where nothing was screened."""
    if bracket is None:
        return None
    screened = {each.variant: each for each in bracket.screened}
    rows = [_row(curve, screened) for curve in bracket.curves]
    return Brackets(_text(bracket), rows)


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
