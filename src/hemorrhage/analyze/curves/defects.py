"""Defects of the points of a damage curve, before anything is fitted to them.

The study's own tables hold copied cells, values below the unaltered model's, and rows of different protocols side by
side (tests/analyze/curves/test_golden_thresholds_step.py). The same rules read our rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stored import Json

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

    def error_of_difference(self, first: int, second: int) -> float:
        """Return the standard error of the difference of two points."""
        e = self.errors
        return float(np.sqrt(max(e[first, first] + e[second, second] - 2 * e[first, second], 0.0)))


@dataclass(frozen=True)
class Defect:
    """A rule that fired: on which cells of which rows, and the numbers that made it."""

    rule: str
    row: str
    cells: tuple[str, ...]
    evidence: str

    def as_json(self) -> dict[str, Json]:
        """Plain content, for the entry of the row's curve."""
        return {"rule": self.rule, "cells": list(self.cells), "evidence": self.evidence}


def published(
    name: str,
    severities: Sequence[float],
    cells: Sequence[str],
    perplexities: Sequence[float],
    digits: int,
    base: float,
) -> Row:
    """Make a row of a printed table, whose values were rounded to ``digits`` after the point."""
    values = np.array(perplexities, dtype=float)
    rounding = 0.5 * 10.0**-digits / np.sqrt(3)
    with np.errstate(invalid="ignore"):
        y, errors = np.log(values), np.nan_to_num(rounding / values)
    x = np.array(severities, dtype=float)
    return Row(name, x, cells, y, np.diag(errors**2), errors, float(np.log(base)), rounding / base)


def defects(row: Row) -> list[Defect]:
    """Name everything that is wrong within one row."""
    return [*_numbers(row), *_copies(row), *_below(row), *_order(row)]


def refused(row: Row) -> set[str]:
    """Name the cells that may not be fitted."""
    return {cell for defect in defects(row) if defect.rule in REFUSED for cell in defect.cells}


def _numbers(row: Row) -> list[Defect]:
    return [
        Defect(NOT_A_NUMBER, row.name, (cell,), "no finite number")
        for cell, y in zip(row.cells, row.y, strict=True)
        if not np.isfinite(y)
    ]


def _copies(row: Row) -> list[Defect]:
    """Name cells equal to the last digit at different settings, whose damage is far larger than what rounding hides."""
    floor = row.base if row.base is not None else float(np.nanmin(row.y))
    return [
        Defect(
            COPIED,
            row.name,
            (row.cells[first], row.cells[second]),
            f"both {np.exp(row.y[second]):.6g}, to the last digit",
        )
        for second in range(len(row.y))
        for first in range(second)
        if row.y[first] == row.y[second] and abs(row.y[second] - floor) > 10 * row.digits[second]
    ]


def _below(row: Row) -> list[Defect]:
    if row.base is None:
        return []
    below = []
    for point, (cell, y) in enumerate(zip(row.cells, row.y, strict=True)):
        noise = float(np.sqrt(row.errors[point, point] + row.base_error**2))
        if np.isfinite(y) and row.base - y > CERTAIN * noise:
            evidence = f"{np.exp(y - row.base):.5g} times the unaltered model's perplexity"
            below.append(Defect(BELOW_BASE, row.name, (cell,), evidence))
    return below


def _order(row: Row) -> list[Defect]:
    """Name points that are less damaged than a milder one. Of neighbours only: one bad cell is one defect."""
    falls = []
    for mild, harsh in itertools.pairwise(_along(row)):
        fall = row.y[mild] - row.y[harsh]
        if row.x[harsh] > row.x[mild] and fall > max(CERTAIN * row.error_of_difference(mild, harsh), 1e-9):
            evidence = f"the perplexity falls to {np.exp(-fall):.4g} of that before"
            falls.append(Defect(NOT_MONOTONE, row.name, (row.cells[mild], row.cells[harsh]), evidence))
    return falls


def mixed_protocols(rows: Sequence[Row]) -> list[Defect]:
    """Name rows that can't be of one unaltered model measured in one way, though a table puts them side by side.

    Damage that grows, and grows faster and faster, starts no higher than the first point, and no lower than the line
    through the first two says (in ln PPL). Where these ranges of two rows do not meet, the rows start at different
    perplexities: the widest group of rows that share a start is left, the others are named.
    """
    ranges = [(row, *_start(row)) for row in rows if len(_along(row)) >= 2]
    if not ranges:
        return []
    groups = [[(start, first) for _, start, first in ranges if start <= high <= first] for _, _, high in ranges]
    most = max(groups, key=len)
    low, high = max(start for start, _ in most), min(first for _, first in most)
    return [
        Defect(
            MIXED,
            row.name,
            (),
            f"starts between {np.exp(start):.4g} and {np.exp(first):.4g}, "
            f"while {len(most)} rows next to it start between {np.exp(low):.4g} and {np.exp(high):.4g}",
        )
        for row, start, first in ranges
        if start > high or first < low
    ]


def _along(row: Row) -> list[int]:
    """Return the indices of the points that lie on the curve, mildest first."""
    return [int(point) for point in np.argsort(row.x, kind="stable") if np.isfinite(row.x[point] + row.y[point])]


def _start(row: Row) -> tuple[float, float]:
    """Bound the log-perplexity of a row's unaltered model from below and above."""
    first, second = _along(row)[:2]
    slope = (row.y[second] - row.y[first]) / (row.x[second] - row.x[first])
    noise = CERTAIN * float(np.sqrt(row.errors[first, first]))
    return float(row.y[first] - max(slope, 0.0) * row.x[first]) - noise, float(row.y[first]) + noise


def of_curve(name: str, distances: Floats, variants: Sequence[str], ratios: Floats, replicates: Floats) -> list[Defect]:
    """Name the defects of a measured curve: ``distances`` from the base ``[points]``, log-perplexity ``ratios``
    ``[points]``, ``replicates`` ``[resamples, points]``."""
    errors = np.atleast_2d(np.cov(replicates.T)) if len(replicates) > 1 else np.zeros((len(ratios), len(ratios)))
    return defects(Row(name, distances, list(variants), ratios, errors, np.full(len(ratios), 1e-9), 0.0))
