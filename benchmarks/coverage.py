"""Coverage of the thresholds' intervals, false knees and power: thousands of simulated curves, written into the docs.

    python -m benchmarks.coverage --curves 200 --write

Every curve is measured on 32 blocks whose difficulty all of its points share, and lies off its shape by a misfit, a
share of the curve's root mean square. Curves without a knee are of shapes that the candidates have (logistic, Hill, a
power that saturates) and of others (Gompertz, log-normal and Cauchy's distribution functions, and monotone cubics
through published tables). A knee on one of them is false: at most 5 %. Broken lines give the power, and the coverage of
the knee's interval; smooth shapes that of a level's. With ``draws`` each point moves by 10 % of its damage, as with one
calibration draw, once unknown to the interval and once known to it.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import optimize, stats
from scipy.interpolate import PchipInterpolator

from hemorrhage.analyze.curves import thresholds
from hemorrhage.analyze.curves.entries import Threshold
from hemorrhage.analyze.curves.shapes import EXPECTED_MISFIT
from hemorrhage.analyze.curves.thresholds import ANCHORED, PHASES, TWO_SEGMENTS, Curve, FittedCurve
from hemorrhage.analyze.rows import draws
from hemorrhage.analyze.stats.bootstrap import Floats

DOCS = Path(__file__).parents[1] / "docs" / "thresholds.md"
BEGIN, END = "<!-- benchmarks.coverage: begin -->", "<!-- benchmarks.coverage: end -->"

BLOCKS = 32
RESAMPLES = 400
GRIDS = ([0.3, 0.5, 0.6, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1 * n for n in range(1, 9)])
MISFITS = (0.0, EXPECTED_MISFIT)
LAST = 10.8
"""What chance leaves of a vocabulary of 49,152, in nats."""

Damage: TypeAlias = Callable[[Floats], Floats]


def broken(knee: float) -> Damage:
    """Damage that bends at a knee."""
    return lambda x: 0.3 * x + 6 * np.maximum(x - knee, 0)


def line(x: Floats) -> Floats:
    """Damage without a cliff."""
    return 1.5 * x


def exponential(x: Floats) -> Floats:
    """Damage that grows ever faster, without a place where it starts to."""
    return 0.1 * np.expm1(5 * x)


def _from_base(rising: Damage) -> Damage:
    return lambda x: LAST * (rising(x) - rising(np.zeros(1)))


def _table(perplexities: list[float], base: float) -> Damage:
    """Damage through the cells of a published table of tenths, smooth between them."""
    cubic = PchipInterpolator(np.arange(len(perplexities) + 1) / 10, [0, *np.log(np.array(perplexities) / base)])
    return lambda x: np.asarray(cubic(x), dtype=np.float64)


SMOOTH: dict[str, Damage] = {
    "line": line,
    "exponential": exponential,
    "logistic": _from_base(lambda x: 1 / (1 + np.exp(-14 * (x - 0.6)))),
    "steep logistic": _from_base(lambda x: 1 / (1 + np.exp(-25 * (x - 0.45)))),
    "Hill": _from_base(lambda x: x**5 / (0.55**5 + x**5)),
    "saturating power": _from_base(lambda x: -np.expm1(-((x / 0.65) ** 4))),
}
"""Damage without a knee, of shapes that are candidates."""

OTHERS: dict[str, Damage] = {
    "Gompertz": _from_base(lambda x: np.exp(-6 * np.exp(-5 * x))),
    "steep Gompertz": _from_base(lambda x: np.exp(-60 * np.exp(-9 * x))),
    "log-normal": _from_base(lambda x: stats.lognorm.cdf(x, 0.35, scale=0.5)),
    "Cauchy": _from_base(lambda x: np.arctan(12 * (x - 0.55)) / math.pi),
    "SliceGPT's published cells": _table([5.65, 6.49, 8.15, 12.13, 19.54, 32.0, 60.0, 163], 5.47),
    "SLEB's published cells": _table([6.47, 8.11, 13.82, 29.93, 106.2, 402, 1871, 2868], 5.47),
}
"""Damage of no candidate's shape. It has no knee by construction, but for published cells, of which nobody knows."""


def measured(rng: np.random.Generator, x: Floats, truth: Floats, error: float, misfit: float) -> Curve:
    """Measure a curve on blocks of text: ``error`` is each point's own standard error; blocks differ in how fragile
    they are, which all points share; ``misfit`` is a share of the curve's root mean square."""
    fragility = 1 + 0.1 * rng.normal(size=(BLOCKS, 1))
    blocks = truth * fragility + rng.normal(0, error * math.sqrt(BLOCKS), (BLOCKS, len(x)))
    blocks += misfit * math.sqrt(float((truth**2).mean())) * rng.normal(size=len(x))
    counts = rng.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), size=RESAMPLES)
    return thresholds.make_curve(x, blocks.mean(axis=0), counts @ blocks / BLOCKS, BLOCKS)


def drawn_once(rng: np.random.Generator, x: Floats, truth: Floats, known: bool, seed: int) -> Curve:
    """Measure a curve whose points come from one calibration draw; ``known``: its interval is told so."""
    once = truth * (1 + draws.SPREAD * rng.normal(size=len(x)))
    curve = measured(rng, x, once, 0.02, 0.0)
    spread = draws.Spread(draws.SPREAD) if known else draws.NONE
    replicates = draws.scatter(curve.replicates[:, 1:], curve.y[1:], spread, seed)
    return thresholds.make_curve(x, curve.y[1:], replicates, BLOCKS)


def false_knees(damage: Damage, grid: list[float], curves: int, seed: int) -> dict[str, float]:
    """Count how often a curve of this damage is given a knee: the share, by definition."""
    rng, x = np.random.default_rng(seed), np.array(grid)
    placed = dict.fromkeys(("knee", "phase_point", "anchored_point"), 0)
    for turn in range(curves):
        fitted = FittedCurve(measured(rng, x, damage(x), 0.02, MISFITS[turn % 2]), 0.95, seed + turn)
        for name, among in zip(placed, (TWO_SEGMENTS, PHASES, ANCHORED), strict=True):
            placed[name] += fitted.knee(among).is_located
    return {name: count / curves for name, count in placed.items()}


def power(grid: list[float], curves: int, seed: int, known: bool | None = None) -> tuple[float, float]:
    """Return how often the knee of a broken line is found, and how often its interval covers it, found or not.

    ``known``: None without calibration draws, else whether the intervals are told of the one draw.
    """
    rng, x = np.random.default_rng(seed), np.array(grid)
    middle = len(x) // 2
    covered, placed = 0, 0
    for turn in range(curves):
        knee = float(rng.uniform(x[middle - 1], x[middle]))
        truth = broken(knee)(x)
        if known is None:
            curve = measured(rng, x, truth, 0.02, MISFITS[turn % 2])
        else:
            curve = drawn_once(rng, x, truth, known, turn)
        fitted = FittedCurve(curve, 0.95, seed + turn)
        covered += holds(*fitted.limits(TWO_SEGMENTS), knee)
        placed += fitted.knee(TWO_SEGMENTS).is_located
    return placed / curves, covered / curves


def level_coverage(damage: Damage, grid: list[float], curves: int, seed: int, known: bool | None = None) -> float:
    """Return how often the interval of where the perplexity doubles covers it; NaN beyond the grid."""
    rng, x = np.random.default_rng(seed), np.array(grid)
    if damage(x)[-1] < 2 * math.log(2):
        return math.nan
    place = float(optimize.brentq(lambda at: float(damage(np.array([at]))[0]) - math.log(2), 0, x[-1]))
    covered = 0
    for turn in range(curves):
        truth = damage(x)
        curve = measured(rng, x, truth, 0.02, 0.0) if known is None else drawn_once(rng, x, truth, known, turn)
        covered += covers(thresholds.level_point(curve, math.log(2), 0.95), place)
    return covered / curves


def covers(threshold: Threshold, place: float) -> bool:
    """Tell whether an interval holds a place; an open end holds everything."""
    return holds(threshold.low, threshold.high, place)


def holds(low: float | None, high: float | None, place: float) -> bool:
    """Tell whether an interval with open ends, None, holds a place."""
    return (low is None or low <= place) and (high is None or place <= high)


def tables(curves: int, seed: int) -> str:
    """Simulate and write the tables of the docs."""
    numbers = [len(grid) for grid in GRIDS]
    head = "".join(f" {number} points |" for number in numbers)
    rule = "|---" * (len(numbers) + 1) + "|"
    lines = [f"`python -m benchmarks.coverage --curves {curves} --seed {seed} --write` made these tables.", ""]
    lines += [f"| curves without a knee that are given one: knee, phase point, anchored, % |{head}", rule]
    for name, damage in (SMOOTH | OTHERS).items():
        cells = [_percents(false_knees(damage, grid, curves, seed).values(), ", ") for grid in GRIDS]
        lines.append(f"| {name}{'' if name in SMOOTH else ' (no candidate)'} |" + "".join(cells))
        print(lines[-1], flush=True)
    lines += ["", f"| broken lines: knee found; interval covers it, % |{head}", rule]
    for title, known in DRAWS.items():
        cells = [_percents(power(grid, curves, seed, known), "; ") for grid in GRIDS]
        lines.append(f"| {title} |" + "".join(cells))
        print(lines[-1], flush=True)
    lines += ["", f"| interval of the doubling covers it, least of all shapes, % |{head}", rule]
    for title, known in DRAWS.items():
        shares = [[level_coverage(each, g, curves, seed, known) for each in (SMOOTH | OTHERS).values()] for g in GRIDS]
        lines.append(f"| {title} |" + "".join(_percents([float(np.nanmin(share))], "") for share in shares))
        print(lines[-1], flush=True)
    return "\n".join(lines)


DRAWS = {"no calibration": None, "one draw, not in the interval": False, "one draw, in the interval": True}
"""Title of a row -> whether its intervals know of the calibration draw that moves the points; None: nothing does."""


def _percents(shares: Iterable[float], between: str) -> str:
    return f" {between.join(f'{100 * share:.0f}' for share in shares)} |"


def insert(text: str, made: str) -> str:
    """Put the tables between the marks of a page."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{made}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("--curves", type=int, default=200, help="curves per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/thresholds.md")
    given = parser.parse_args()
    made = tables(given.curves, given.seed)
    print(made)
    if given.write:
        DOCS.write_text(insert(DOCS.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
