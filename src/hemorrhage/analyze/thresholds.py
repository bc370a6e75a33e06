"""Where damage turns into collapse, along one curve of a sweep.

Two definitions, side by side, both on the log-perplexity ratio y = ln(PPL / PPL of the base):

- the 2x-perplexity point: where y, drawn straight from point to point, first reaches ln 2;
- the knee: where two joined straight lines bend that fit y better than one line. Both start at the base,
  where y = 0 by definition.

The intervals come from the same resampled blocks as those of y itself. They hold the uncertainty of the
measured points, not that of the shape between them: ``between`` names the measured points around a threshold.
An answer may be that there is none, or that the points do not suffice to tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemorrhage.analyze.bootstrap import Floats, interval

FOUND = "found"
NO_CLIFF = "no cliff in range"
TOO_FEW = "too few points"

KNEE_POINTS = 4
"""Measured points that a knee needs beside the base: two lines have three parameters, one is left."""


@dataclass(frozen=True)
class Curve:
    """Damage along one curve, from the base outwards.

    ``x``: float64 ``[points + 1]``, distance from the base, ascending from 0. ``y``: float64
    ``[points + 1]``, log-perplexity ratio, 0 at the base. ``replicates``: y in each resample
    of the blocks, float64 ``[resamples, points + 1]``.
    """

    x: Floats
    y: Floats
    replicates: Floats
    blocks: int


def curve(distances: Floats, ratios: Floats, replicates: Floats, blocks: int) -> Curve:
    """Order points by distance from the base, average those at the same distance (seeds), put the base first.

    ``distances``, ``ratios``: ``[points]``; ``replicates``: ``[resamples, points]``.
    """
    x, place = np.unique(np.round(distances, 6), return_inverse=True)
    share = (place[None, :] == np.arange(len(x))[:, None]).astype(float)
    share /= share.sum(axis=1, keepdims=True)
    undamaged = np.zeros((len(replicates), 1))
    return Curve(
        x=np.concatenate([[0.0], x]),
        y=np.concatenate([[0.0], share @ ratios]),
        replicates=np.concatenate([undamaged, replicates @ share.T], axis=1),
        blocks=blocks,
    )


def crossing(x: Floats, y: Floats, level: float) -> Floats:
    """Where piecewise linear curves first reach ``level``: float64 ``[curves]``, infinite where never.

    ``x``: ``[points]`` ascending; ``y``: ``[curves, points]``, below ``level`` at the first point.
    """
    above = y >= level
    first = np.maximum(above.argmax(axis=1), 1)
    rows = np.arange(len(y))
    y0, y1 = y[rows, first - 1], y[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        place = x[first - 1] + (level - y0) / (y1 - y0) * (x[first] - x[first - 1])
    return np.where(above.any(axis=1), place, np.inf)


def two_fold(found: Curve, confidence: float) -> dict[str, Any]:
    """The 2x-perplexity point of a curve, as a distance from the base.

    ``high`` is None where the upper limit lies beyond the last measured point.
    """
    if len(found.x) < 3:
        return {"answer": TOO_FEW, "reason": "1 measured point; a curve needs 2"}
    level = math.log(2)
    place = float(crossing(found.x, found.y[None, :], level)[0])
    places = crossing(found.x, found.replicates, level)
    reached = float(np.isfinite(places).mean())
    if not math.isfinite(place):
        worst = math.exp(float(found.y[1:].max()))
        reason = f"the worst variant has {worst:.3g} times the base's perplexity"
        return {"answer": NO_CLIFF, "reason": reason, "resamples_reaching": reached}
    low, high = interval(np.where(np.isfinite(places), places, 2 * found.x[-1]), confidence, found.blocks)
    return {
        "answer": FOUND,
        "estimate": place,
        "low": low,
        "high": high if high <= found.x[-1] else None,
        "between": _between(found.x, place),
        "resamples_reaching": reached,
    }


@dataclass(frozen=True)
class Segments:
    """Least squares fits of two joined lines through the base: arrays ``[curves]``."""

    knee: Floats
    before: Floats
    after: Floats
    rss: Floats


def line(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope and residual sum of squares of one line through the base; ``y``: ``[curves, points]``."""
    slope = y @ x / (x @ x)
    return slope, ((y - slope[:, None] * x) ** 2).sum(axis=1)


def two_segments(x: Floats, y: Floats) -> Segments:
    """Best two joined lines through the base whose slope grows at the knee, for each curve of ``y``.

    ``x``: ``[points]``, ``y``: ``[curves, points]``, both with the base (0, 0) first. The fit is exact, not
    searched on a grid (Hudson, JASA 1966): within the gap between two neighbouring points the optimum is the
    meeting of the two separate fits if they meet there, else it lies on a point. The knee is looked for
    between the first and the last point but one: outside, one of the two slopes would rest on no data.
    """
    best_slope, best_rss = line(x, y)
    knee, before, after = np.full(len(y), np.nan), best_slope.copy(), best_slope.copy()
    rss = best_rss.copy()
    for candidate in _candidates(x, y):
        better = (candidate.rss < rss) & (candidate.after > candidate.before)
        rss = np.where(better, candidate.rss, rss)
        knee = np.where(better, candidate.knee, knee)
        before = np.where(better, candidate.before, before)
        after = np.where(better, candidate.after, after)
    return Segments(knee, before, after, rss)


def _candidates(x: Floats, y: Floats) -> list[Segments]:
    last = len(x) - 1
    found = [_bent_at(x, y, x[place]) for place in range(1, last)]
    found += [_bent_within(x, y, place) for place in range(1, last - 1)]
    return found


def _bent_at(x: Floats, y: Floats, knee: float) -> Segments:
    """Two lines that bend at a given place."""
    design = np.stack([x, np.maximum(x - knee, 0.0)], axis=1)
    coefficients = y @ np.linalg.pinv(design).T
    rss = ((y - coefficients @ design.T) ** 2).sum(axis=1)
    before = coefficients[:, 0]
    return Segments(np.full(len(y), knee), before, before + coefficients[:, 1], rss)


def _bent_within(x: Floats, y: Floats, place: int) -> Segments:
    """Two lines that bend strictly between points ``place`` and ``place + 1``; rss infinite where none do."""
    before, rss_before = line(x[: place + 1], y[:, : place + 1])
    design = np.stack([np.ones(len(x) - place - 1), x[place + 1 :]], axis=1)
    coefficients = y[:, place + 1 :] @ np.linalg.pinv(design).T
    rss_after = ((y[:, place + 1 :] - coefficients @ design.T) ** 2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        knee = coefficients[:, 0] / (before - coefficients[:, 1])
    inside = (knee > x[place]) & (knee < x[place + 1])
    return Segments(knee, before, coefficients[:, 1], np.where(inside, rss_before + rss_after, np.inf))


def bic(rss: float, points: int, parameters: int) -> float:
    """Schwarz's criterion of a least squares fit; smaller is better."""
    return points * math.log(max(rss, 1e-300) / points) + parameters * math.log(points)


def bend(found: Curve, confidence: float) -> dict[str, Any]:
    """The knee of a curve, as a distance from the base.

    Two lines must beat one by Schwarz's criterion, and by more than chance: ``p_straight`` is the share of
    resamples in which a truly straight curve with the measured noise loses as much misfit to a second line.
    The last gap is special: with one point beyond it, any knee inside it fits equally well.
    """
    points = len(found.x) - 1
    if points < KNEE_POINTS:
        return {"answer": TOO_FEW, "reason": f"{points} measured points; a knee needs {KNEE_POINTS}"}
    slope, rss_line = line(found.x, found.y[None, :])
    fit = two_segments(found.x, found.y[None, :])
    bics = {"line": bic(float(rss_line[0]), points, 1), "two_segments": bic(float(fit.rss[0]), points, 3)}
    straight = slope[0] * found.x + (found.replicates - found.replicates.mean(axis=0))
    gains = line(found.x, straight)[1] - two_segments(found.x, straight).rss
    chance = float((gains >= rss_line[0] - fit.rss[0]).mean())
    judged: dict[str, Any] = {"bic": bics, "p_straight": chance}
    if not math.isfinite(fit.knee[0]) or bics["two_segments"] >= bics["line"] or chance > 1 - confidence:
        return {"answer": NO_CLIFF, "reason": "one straight line fits as well as two", **judged}
    knee = float(fit.knee[0])
    slopes = {"slope_before": float(fit.before[0]), "slope_after": float(fit.after[0])}
    if knee >= found.x[-2]:
        reason = "the bend lies between the last two points: a point between or beyond them is needed"
        return {
            "answer": TOO_FEW,
            "reason": reason,
            "between": [float(v) for v in found.x[-2:]],
            **slopes,
            **judged,
        }
    knees = two_segments(found.x, found.replicates).knee
    low, high = interval(np.where(np.isfinite(knees), knees, found.x[-2]), confidence, found.blocks)
    return {
        "answer": FOUND,
        "estimate": knee,
        "low": low,
        "high": high,
        "between": _between(found.x, knee),
        **slopes,
        **judged,
    }


def _between(x: Floats, place: float) -> list[float]:
    right = int(np.clip(np.searchsorted(x, place), 1, len(x) - 1))
    return [float(x[right - 1]), float(x[right])]
