"""Coverage of a knee's interval, and how often a line is given one: thousands of simulated curves.

    python -m benchmarks.coverage --curves 300

Every curve is measured on 32 blocks whose difficulty all of its points share, and lies off its shape by a misfit: none,
or a share of the curve's root mean square. Prints a row per number of points and misfit: the share of intervals that
cover the true knee, of all curves and of those on which a knee was found; how often it was found; and how often a
straight line and a smooth exponential were given a knee. A nominal 95 % should cover 90 to 99 %, and a line should have
a knee at most 5 % of the time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from hemorrhage.analyze.curves import thresholds
from hemorrhage.analyze.curves.entries import Threshold
from hemorrhage.analyze.curves.thresholds import Curve, FittedCurve
from hemorrhage.analyze.stats.bootstrap import Floats

BLOCKS = 32
RESAMPLES = 400
GRIDS = (
    [0.3, 0.5, 0.6, 0.7],
    [0.1, 0.2, 0.3, 0.4, 0.5],
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    [0.1 * n for n in range(1, 9)],
)
MISFITS = (0.0, 0.01, 0.03)


def broken(knee: float) -> Callable[[Floats], Floats]:
    """Damage that bends at a knee."""
    return lambda x: 0.3 * x + 6 * np.maximum(x - knee, 0)


def line(x: Floats) -> Floats:
    """Damage without a cliff."""
    return 1.5 * x


def exponential(x: Floats) -> Floats:
    """Damage that grows ever faster, without a place where it starts to."""
    return 0.1 * np.expm1(5 * x)


def measured(rng: np.random.Generator, x: Floats, truth: Floats, error: float, misfit: float) -> Curve:
    """Measure a curve on blocks of text: ``error`` is each point's own standard error; blocks differ in how fragile
    they are, which all points share; ``misfit`` is a share of the curve's root mean square."""
    fragility = 1 + 0.1 * rng.normal(size=(BLOCKS, 1))
    blocks = truth * fragility + rng.normal(0, error * math.sqrt(BLOCKS), (BLOCKS, len(x)))
    blocks += misfit * math.sqrt(float((truth**2).mean())) * rng.normal(size=len(x))
    counts = rng.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), size=RESAMPLES)
    return thresholds.make_curve(x, blocks.mean(axis=0), counts @ blocks / BLOCKS, BLOCKS)


def knees(
    rng: np.random.Generator, x: Floats, shape: Callable[[Floats], Floats], misfit: float, curves: int, seed: int
) -> list[Threshold]:
    """Place the knees of simulated curves of one shape."""
    fitted = (FittedCurve(measured(rng, x, shape(x), 0.02, misfit), 0.95, seed + turn) for turn in range(curves))
    return [curve.knee(thresholds.TWO_SEGMENTS) for curve in fitted]


def covers(threshold: Threshold, knee: float) -> bool:
    """Tell whether an interval holds the knee; an open end holds everything."""
    return holds(threshold.low, threshold.high, knee)


def holds(low: float | None, high: float | None, knee: float) -> bool:
    """Tell whether an interval with open ends, None, holds the knee."""
    return (low is None or low <= knee) and (high is None or knee <= high)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("--curves", type=int, default=300, help="curves per row and shape")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    print("points misfit | covered  of placed placed | line given a knee  exponential given one")
    totals = []
    for grid in GRIDS:
        x = np.array(grid)
        middle = len(x) // 2
        for misfit in MISFITS:
            every, of_located = [], []
            for turn in range(given.curves):
                knee = float(rng.uniform(x[middle - 1], x[middle]))
                curve = FittedCurve(measured(rng, x, broken(knee)(x), 0.02, misfit), 0.95, turn)
                every.append(holds(*curve.limits(thresholds.TWO_SEGMENTS), knee))
                if curve.knee(thresholds.TWO_SEGMENTS).is_located:
                    of_located.append(every[-1])
            false = [
                np.mean([each.is_located for each in knees(rng, x, shape, misfit, given.curves, 1)])
                for shape in (line, exponential)
            ]
            totals.append((np.mean(every), *false))
            located = f"{np.mean(of_located):8.3f}" if of_located else "       -"
            share = len(of_located) / given.curves
            covered = f"{np.mean(every):7.3f} {located}  {share:5.2f}"
            print(f"{len(x):6d} {misfit:6.2f} | {covered} | {false[0]:17.3f} {false[1]:22.3f}", flush=True)
    covered, lines, curved = np.mean(totals, axis=0)
    print(f"all           | {covered:7.3f}                 | {lines:17.3f} {curved:22.3f}")


if __name__ == "__main__":
    main()
