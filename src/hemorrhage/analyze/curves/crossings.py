"""Where a damage curve first reaches a level: an estimate, and bounds that hold what lies between the points.

Between two measured points damage may run in many ways. What is assumed of it: it does not fall, and it grows faster up
to one place and slower after it, as damage does that ends at chance (ln of the vocabulary). Convex and concave curves
are such curves. In a gap whose mean slope is m, from a point ``left`` to a point ``right``, with the mean slopes of the
gaps next to it before (b) and after (a):

- if m <= a, the curve lies below the chord; if not, below the line of slope a through ``right``;
- if m <= b, it lies above the chord; if not, above the line of slope b through ``left``;
- if m <= a and the slope of the gap after the next is no less than a, also above the line of slope a through ``right``;
- if m <= b and the slope of the gap before the last is no less than b, also below the line of slope b through ``left``.

The gap that starts at the base is apart: what a first step costs (the first block that is taken out, a factorization
before any rank is lost) says nothing of the next. Only its ends bound it, and its slope bounds no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from hemorrhage.analyze.stats.bootstrap import Floats

SAME = 2e-6
"""Positions this close are one: those of points are rounded."""


@dataclass(frozen=True)
class Bounds:
    """The first and the last position at which curves can reach a level: ``[curves]``, infinite where none does."""

    near: Floats
    far: Floats


def bounds(x: Floats, y: Floats, level: float) -> Bounds:
    """Bound where curves through points first reach a level.

    ``x``: ``[points]`` ascending, the base first; ``y``: ``[curves, points]``, below ``level`` at the base.
    """
    above = y >= level
    right = np.maximum(above.argmax(axis=1), 1)
    left = right - 1
    rows = np.arange(len(y))
    slopes = np.diff(y, axis=1) / np.diff(x)
    slopes[:, 0] = np.nan
    # Slopes of the gaps from two before to two after, NaN where there is none: comparisons with NaN are false.
    beyond = np.full((len(y), 2), np.nan)
    padded = np.concatenate([beyond, slopes, beyond], axis=1)
    earlier, before, here, after, later = (padded[rows, left + offset] for offset in range(5))
    x_left, x_right = x[left], x[right]
    from_left, from_right = level - y[rows, left], y[rows, right] - level
    with np.errstate(divide="ignore", invalid="ignore"):
        chord = x_left + from_left / here
        along_before, along_after = x_left + from_left / before, x_right - from_right / after
    near = np.select([after >= here, after > 0], [chord, along_after], x_left)
    far = np.select([before >= here, before > 0], [chord, along_before], x_right)
    near = np.where((earlier >= before) & (before >= here), np.maximum(near, along_before), near)
    far = np.where((later >= after) & (after >= here), np.minimum(far, along_after), far)
    at_base = left == 0
    near, far = (
        np.where(at_base, x_left, np.maximum(near, x_left)),
        np.where(at_base, x_right, np.minimum(far, x_right)),
    )
    reached = above.any(axis=1)
    return Bounds(np.where(reached, near, np.inf), np.where(reached, far, np.inf))


def estimate(x: Floats, y: Floats, level: float) -> float:
    """Estimate where one curve first reaches a level: a monotone cubic through its points, within the bounds.

    The cubic is Fritsch and Carlson's (SIAM Journal on Numerical Analysis 1980 17:238). Infinite where no point reaches
    the level.
    """
    limits = bounds(x, y[None, :], level)
    near, far = float(limits.near[0]), float(limits.far[0])
    if not np.isfinite(near):
        return float("inf")
    rising = np.maximum.accumulate(y)
    right = int((rising >= level).argmax())
    cubic = PchipInterpolator(x, rising)
    crossed = float(brentq(lambda at: float(cubic(at)) - level, x[right - 1], x[right]))
    return min(max(crossed, near), far)


def reaching(at: float, steps: Floats) -> float:
    """Return the first position that a setting can have at or after one, ``steps`` ``[positions]``."""
    return float(steps[steps >= at - SAME].min(initial=np.inf))


def widen(near: float, far: float, steps: Floats) -> tuple[float, float]:
    """Move the ends of a range outwards to the next positions that a setting can have, ``steps`` ``[positions]``."""
    before, after = steps[steps <= near + SAME], steps[steps >= far - SAME]
    return float(before.max(initial=-np.inf)), float(after.min(initial=np.inf))
