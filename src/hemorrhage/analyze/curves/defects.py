"""What looks wrong with the points of a damage curve, before anything is fitted to them.

The study's own tables hold copied cells, values below the unaltered model's, and rows of different protocols side by
side (tests/analyze/test_golden_thresholds.py). The same rules read our rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.stats.bootstrap import Floats

CERTAIN = 3.29
"""Standard errors of a difference beyond which it is not taken for noise: one in a thousand."""

NOT_A_NUMBER = "not a number"
COPIED = "copied"
BELOW_BASE = "below the unaltered model"
NOT_MONOTONE = "less damage further on"
MIXED = "mixed protocols"

REFUSED = (NOT_A_NUMBER, COPIED)
"""Rules whose cells may not be fitted; the others only warn."""


@dataclass(frozen=True)
class Row:
    """Log-perplexities of one method: ``x`` the severity, NaN for a cell that is no point of the curve, such as 2:4;
    ``cells`` what each is called; ``y`` ``[points]`` with covariance ``errors``, and ``digits``, up to which equal
    numbers may be equal by rounding; ``base``: the unaltered model's, where it is known, and its standard error."""

    name: str
    x: Floats
    cells: Sequence[str]
    y: Floats
    errors: Floats
    digits: Floats
    base: float | None = None
    base_error: float = 0.0

    def differ(self, one: int, other: int) -> float:
        """Standard error of the difference of two points."""
        e = self.errors
        return float(np.sqrt(max(e[one, one] + e[other, other] - 2 * e[one, other], 0.0)))


@dataclass(frozen=True)
class Defect:
    """A rule that fired: on which cells of which rows, and the numbers that made it."""

    rule: str
    row: str
    cells: tuple[str, ...]
    evidence: str


def published(
    name: str,
    severities: Sequence[float],
    cells: Sequence[str],
    perplexities: Sequence[float],
    digits: int,
    base: float,
) -> Row:
    """A row of a printed table, whose values were rounded to ``digits`` after the point."""
    values = np.array(perplexities, dtype=float)
    rounding = 0.5 * 10.0**-digits / np.sqrt(3)
    with np.errstate(invalid="ignore"):
        y, errors = np.log(values), np.nan_to_num(rounding / values)
    x = np.array(severities, dtype=float)
    return Row(name, x, cells, y, np.diag(errors**2), errors, float(np.log(base)), rounding / base)


def defects(row: Row) -> list[Defect]:
    """Everything that is wrong within one row."""
    return [*_numbers(row), *_copies(row), *_below(row), *_order(row)]


def refused(row: Row) -> set[str]:
    """Cells that may not be fitted."""
    return {cell for found in defects(row) if found.rule in REFUSED for cell in found.cells}


def _numbers(row: Row) -> list[Defect]:
    return [
        Defect(NOT_A_NUMBER, row.name, (cell,), "no finite number")
        for cell, y in zip(row.cells, row.y, strict=True)
        if not np.isfinite(y)
    ]


def _copies(row: Row) -> list[Defect]:
    """Equal to the last digit at different settings, though the damage is far larger than what rounding hides."""
    found = []
    floor = row.base if row.base is not None else float(np.nanmin(row.y))
    for one in range(len(row.y)):
        for other in range(one):
            same = row.y[one] == row.y[other]
            if same and abs(row.y[one] - floor) > 10 * row.digits[one]:
                cells = (row.cells[other], row.cells[one])
                found.append(Defect(COPIED, row.name, cells, f"both {np.exp(row.y[one]):.6g}, to the last digit"))
    return found


def _below(row: Row) -> list[Defect]:
    if row.base is None:
        return []
    found = []
    for place, (cell, y) in enumerate(zip(row.cells, row.y, strict=True)):
        noise = float(np.sqrt(row.errors[place, place] + row.base_error**2))
        if np.isfinite(y) and row.base - y > CERTAIN * noise:
            evidence = f"{np.exp(y - row.base):.5g} times the unaltered model's perplexity"
            found.append(Defect(BELOW_BASE, row.name, (cell,), evidence))
    return found


def _order(row: Row) -> list[Defect]:
    """A point that is less damaged than a milder one. Of neighbours only: one bad cell is one defect."""
    order, found = _along(row), []
    for one, other in itertools.pairwise(order):
        fall = row.y[one] - row.y[other]
        if row.x[other] > row.x[one] and fall > max(CERTAIN * row.differ(one, other), 1e-9):
            evidence = f"the perplexity falls to {np.exp(-fall):.4g} of that before"
            found.append(Defect(NOT_MONOTONE, row.name, (row.cells[one], row.cells[other]), evidence))
    return found


def mixed_protocols(rows: Sequence[Row]) -> list[Defect]:
    """Rows that can't be of one unaltered model measured in one way, though a table puts them side by side.

    Damage that grows, and grows faster and faster, starts no higher than the first point, and no lower than the line
    through the first two says (in ln PPL). Where these ranges of two rows do not meet, the rows start at different
    perplexities: the widest group of rows that share a start is left, the others are named.
    """
    ranges = [(row, *_start(row)) for row in rows if len(_along(row)) >= 2]
    if not ranges:
        return []
    groups = [[one for one in ranges if one[1] <= high and one[2] >= high] for _, _, high in ranges]
    most = max(groups, key=len)
    low, high = max(one[1] for one in most), min(one[2] for one in most)
    return [
        Defect(
            MIXED,
            row.name,
            (),
            f"starts between {np.exp(start):.4g} and {np.exp(first):.4g}, "
            f"while {len(most)} rows beside it start between {np.exp(low):.4g} and {np.exp(high):.4g}",
        )
        for row, start, first in ranges
        if start > high or first < low
    ]


def _along(row: Row) -> list[int]:
    """Places of the points that lie on the curve, mildest first."""
    return [int(place) for place in np.argsort(row.x, kind="stable") if np.isfinite(row.x[place] + row.y[place])]


def _start(row: Row) -> tuple[float, float]:
    """Between which log-perplexities the unaltered model of a row lies."""
    one, other = _along(row)[:2]
    slope = (row.y[other] - row.y[one]) / (row.x[other] - row.x[one])
    noise = CERTAIN * float(np.sqrt(row.errors[one, one]))
    return float(row.y[one] - max(slope, 0.0) * row.x[one]) - noise, float(row.y[one]) + noise


def of_curve(
    name: str, places: Floats, variants: Sequence[str], ratios: Floats, replicates: Floats
) -> list[dict[str, object]]:
    """Defects of one of our curves, as JSON: ``places`` distances from the base ``[points]``, ``ratios`` log-perplexity
    ratios ``[points]``, ``replicates`` ``[resamples, points]``."""
    errors = np.atleast_2d(np.cov(replicates.T)) if len(replicates) > 1 else np.zeros((len(ratios), len(ratios)))
    row = Row(name, places, list(variants), ratios, errors, np.full(len(ratios), 1e-9), 0.0)
    return [{"rule": found.rule, "cells": list(found.cells), "evidence": found.evidence} for found in defects(row)]
