"""The points at which damage turns into collapse, along one curve of a sweep.

Two kinds of definitions, side by side:

- a level: where the damage first reaches a level, by a monotone cubic through the points. Its interval holds the noise
  of the points and all that the curve can do between them (``crossings``); ``between`` names the measured points around
  it;
- a knee: where a shape bends that describes the points better than every shape without a knee (``shapes``). Its
  interval holds the noise of the points and how far points lie from any such shape.

An answer may be that there is none, or that the points do not suffice to tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hemorrhage.analyze.curves import crossings
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, Fit, Threshold
from hemorrhage.analyze.curves.shapes import (
    EXPECTED_MISFIT,
    SHAPES,
    Fits,
    Points,
    Shape,
    corrected_criterion,
    criterion,
)
from hemorrhage.analyze.stats.bootstrap import Floats, interval

KNEE_POINTS = 4
"""Measured points that a knee needs next to the base: two lines have three parameters, one is left."""

SIMULATIONS = 200
"""Curves without a knee that a knee is compared with."""

UNDECIDED = 2.0
"""A difference of Schwarz's criterion that is "not worth more than a bare mention" (Kass and Raftery, Journal of the
American Statistical Association 1995 90:773)."""

STRONG = 6.0
"""A difference that is "strong" by the same scale: what a knee has to gain, for no smooth shape here is quite a curve's
own."""

TWO_SEGMENTS = tuple(shape for shape in SHAPES if shape.name == "two_segments")
PHASES = tuple(shape for shape in SHAPES if shape.name.startswith("power_exponential"))
"""The study's power law that turns into an exponential, with and without a square."""

ANCHORED = tuple(shape for shape in SHAPES if shape.name.startswith("anchored"))
"""The same through the base."""


@dataclass(frozen=True)
class Curve:
    """Damage along one curve, from the base outwards.

    ``x``: float64 ``[points + 1]``, distance from the base, ascending from 0. ``y``: float64
    ``[points + 1]``, damage, 0 at the base. ``replicates``: y in each resample of the blocks, float64
    ``[resamples, points + 1]``.
    """

    x: Floats
    y: Floats
    replicates: Floats
    blocks: int


def make_curve(distances: Floats, damages: Floats, replicates: Floats, blocks: int) -> Curve:
    """Order points by distance from the base, average those at the same distance (seeds), put the base first.

    ``distances``, ``damages``: ``[points]``; ``replicates``: ``[resamples, points]``. Points at or before the base are
    left out: they are no step along the curve.
    """
    ahead = np.round(distances, 6) > 0
    distances, damages, replicates = distances[ahead], damages[ahead], replicates[:, ahead]
    x, point = np.unique(np.round(distances, 6), return_inverse=True)
    share = (point[None, :] == np.arange(len(x))[:, None]).astype(float)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1.0)
    undamaged = np.zeros((len(replicates), 1))
    return Curve(
        x=np.concatenate([[0.0], x]),
        y=np.concatenate([[0.0], share @ damages]),
        replicates=np.concatenate([undamaged, replicates @ share.T], axis=1),
        blocks=blocks,
    )


def level_point(
    curve: Curve, level: float, confidence: float, steps: Floats | None = None, whole: bool = False
) -> Threshold:
    """Find where a curve first reaches a level, as a distance from the base.

    The interval holds every curve of the kind ``crossings`` assumes through the points, as uncertain as these are. Its
    ends are ``steps``, where a setting has some: distances of all its values, the base's with them. ``whole``: so is
    the estimate, the first step at which the level is reached. ``high`` is None where the upper limit lies beyond the
    last measured point.
    """
    if len(curve.x) < 3:
        return too_few(len(curve.x) - 1, 2, "curve")
    estimate = crossings.estimate(curve.x, curve.y, level)
    scatter = np.random.default_rng(len(curve.x)).normal(0, EXPECTED_MISFIT, curve.replicates.shape)
    resampled = crossings.bounds(curve.x, curve.replicates + scatter * curve.y, level)
    reached = float((curve.replicates >= level).any(axis=1).mean())
    if not math.isfinite(estimate):
        return Threshold(NO_CLIFF, most=float(curve.y[1:].max()), resamples_reaching=reached)
    beyond = 2 * curve.x[-1]
    low, _ = _interval(np.minimum(resampled.near, beyond), confidence, curve.blocks)
    _, high = _interval(np.minimum(resampled.far, beyond), confidence, curve.blocks)
    if low is not None and high is not None and steps is not None:
        low, high = crossings.widen(low, high, steps)
    return Threshold(
        LOCATED,
        estimate=crossings.reaching(estimate, steps) if whole and steps is not None else estimate,
        low=low,
        high=None if high is None or high > curve.x[-1] else high,
        between=_between(curve.x, estimate),
        resamples_reaching=reached,
    )


@dataclass(frozen=True)
class FittedShape:
    """A shape, its best fit to the measured points, and Schwarz's criterion of it."""

    shape: Shape
    fits: Fits
    bic: float


class FittedCurve:
    """A curve with every shape fitted that its points suffice for.

    ``seed`` draws the curves without a knee that a knee has to beat, and the misfits of its interval.
    """

    def __init__(self, curve: Curve, confidence: float, seed: int) -> None:
        self.curve, self.confidence, self.seed = curve, confidence, seed
        self.points = Points(curve.x[1:], curve.y[1:], covariance(curve))

    @cached_property
    def fitted(self) -> dict[str, FittedShape]:
        """Shape -> its fit; shapes that can't bend upward on these points are left out."""
        fitted = {}
        for shape in self.points.shapes:
            fits = self.points.fit(shape, self.points.y[None, :])
            if np.isfinite(fits.deviance[0]):
                fitted[shape.name] = FittedShape(shape, fits, float(criterion(shape, fits, len(self.points.x))[0]))
        return fitted

    @cached_property
    def smooth(self) -> FittedShape:
        """The best shape without a knee."""
        return min((fit for fit in self.fitted.values() if not fit.shape.breaks), key=lambda fit: fit.bic)

    @cached_property
    def _without_knee(self) -> tuple[Floats, Floats]:
        """Curves as the best smooth shape and the noise make them, ``[simulations, points]``, and the least criterion
        that a shape without a knee reaches on each."""
        points, smooth = self.points, self.smooth
        spread = points.spread(smooth.shape, smooth.fits)
        root = np.linalg.cholesky(points.covariance + spread**2 * np.eye(len(points.x)))
        drawn = np.random.default_rng([self.seed, 0]).normal(size=(SIMULATIONS, len(points.x)))
        curves = points.predict(smooth.shape, smooth.fits, points.x) + drawn @ root.T
        plain = [shape for shape in points.shapes if not shape.breaks]
        return curves, np.min([criterion(shape, points.fit(shape, curves), len(points.x)) for shape in plain], axis=0)

    def chance(self, among: Sequence[Shape]) -> float:
        """Estimate how often a curve without a knee gains as much as this one from the best of ``among``."""
        curves, plain = self._without_knee
        broken = np.min(
            [criterion(shape, self.points.fit(shape, curves), len(self.points.x)) for shape in among], axis=0
        )
        gained = self.smooth.bic - min(self.fitted[shape.name].bic for shape in among)
        return float((1 + (plain - broken >= gained - 1e-9).sum()) / (1 + SIMULATIONS))

    def knee(self, among: Sequence[Shape]) -> Threshold:
        """Find where the curve bends by these shapes, as a distance from the base.

        The best of them must beat every shape without a knee by more than ``STRONG`` of Schwarz's criterion, and by
        more than a curve without one gains by chance (``p_smooth``). The estimate is the best shape's; the interval is
        over all of them, each weighted with exp(-criterion / 2), the criterion corrected for few points.
        """
        if len(self.points.x) < min(shape.least for shape in among):
            return few(self.curve, among)
        fitted = [self.fitted[shape.name] for shape in among if shape.name in self.fitted]
        if not fitted:
            return Threshold(NO_CLIFF, "damage does not grow faster anywhere than before")
        best = min(fitted, key=lambda fit: fit.bic)
        gain, plain = self.smooth.bic - best.bic, self.smooth.shape.name
        chance = self.chance([fit.shape for fit in fitted]) if gain > STRONG else None
        if chance is None or chance > 1 - self.confidence:
            why = f"{DESCRIBED[plain]} describes the points as well"
            if plain not in ("none", "linear") and gain > -UNDECIDED:
                return Threshold(TOO_FEW, f"{why}; more points would tell", gain=gain, p_smooth=chance)
            return Threshold(NO_CLIFF, why, gain=gain, p_smooth=chance)
        knee = float(best.fits.knee[0])
        if best.shape in TWO_SEGMENTS and (gap := _gap_at_an_end(self.curve.x, knee)) is not None:
            between, reason = gap
            return Threshold(TOO_FEW, reason, between=between, gain=gain, p_smooth=chance)
        low, high = self.limits(among)
        between = _between(self.curve.x, knee)
        return Threshold(
            LOCATED,
            estimate=knee,
            low=low,
            high=high,
            between=between,
            shape=best.shape.name,
            gain=gain,
            p_smooth=chance,
        )

    def limits(self, among: Sequence[Shape]) -> tuple[float | None, float | None]:
        """Bound the knee over resampled blocks, likely misfits and shapes; None where the interval is open."""
        fitted = [self.fitted[shape.name] for shape in among if shape.name in self.fitted]
        if not fitted:
            return None, None
        generator = np.random.default_rng([self.seed, 1])
        noise = self.curve.replicates[:, 1:] - self.curve.replicates[:, 1:].mean(axis=0)
        scores = np.array([corrected_criterion(fit.shape, fit.fits, self.points) for fit in fitted])
        weights = np.exp((scores.min() - scores) / 2)
        turns = generator.choice(len(fitted), size=len(noise), p=weights / weights.sum())
        x, knees = self.points.x, np.empty(len(noise))
        for turn, fit in enumerate(fitted):
            mine = turns == turn
            misfits = self.points.likely_misfits(fit.shape, fit.fits, int(mine.sum()), generator)
            scatter = misfits[:, None] * generator.normal(size=(len(misfits), len(x)))
            again = self.points.fit(
                fit.shape, self.points.y + noise[mine] + scatter, self.points.misfits[fit.fits.misfit[:1]]
            )
            # Without a knee, or beyond where it could be placed, it may be anywhere up to the last point.
            drawn = np.where(np.isfinite(again.deviance), again.knee, x[-1])
            if fit.shape in TWO_SEGMENTS:
                drawn = np.where(drawn < x[0], 0.0, np.where(drawn > x[-2], x[-1], drawn))
            knees[mine] = drawn
        low, high = _interval(knees, self.confidence, self.curve.blocks)
        return (None if low is None or low <= 0 else low), (None if high is None or high >= x[-1] else high)

    def best(self) -> Fit:
        """Choose the shape with the least criterion, one with a knee only where chance does not explain it.

        The fit's points lie from the base outwards.
        """
        broken = [fit for fit in self.fitted.values() if fit.shape.breaks]
        best = min([self.smooth, *broken], key=lambda fit: fit.bic)
        gain = self.smooth.bic - best.bic
        by_chance = best.shape.breaks and (
            gain <= STRONG or self.chance([fit.shape for fit in broken]) > 1 - self.confidence
        )
        chosen = self.smooth if by_chance else best
        through_base = not chosen.shape.name.startswith("power")
        at = np.linspace(0 if through_base else self.points.x[0], self.points.x[-1], 61)
        criteria = {name: fit.bic for name, fit in self.fitted.items()}
        y = self.points.predict(chosen.shape, chosen.fits, at)
        return Fit(chosen.shape.name, criteria, at.tolist(), y.tolist())


DESCRIBED = {
    "none": "no damage at all",
    "linear": "one straight line",
    "quadratic": "a smooth parabola",
    "exponential": "a smooth exponential",
    "power": "a power of the distance",
    "logistic": "a logistic curve",
    "line_power": "a line and a power of the distance",
    "line_logistic": "a line and a logistic curve",
    "richards": "a skewed logistic curve",
    "hill": "a Hill curve",
    "saturating_power": "a power of the distance that saturates",
    "two_segments": "two straight lines",
    "power_exponential": "a power law, then an exponential with a square",
    "power_exponential_straight": "a power law, then an exponential",
    "anchored_power_exponential": "a power of the distance, then an exponential with a square",
    "anchored_power_exponential_straight": "a power of the distance, then an exponential",
}
"""Shapes as people call them: on a logarithmic scale where y is a log ratio."""


def covariance(curve: Curve) -> Floats:
    """Estimate the covariance of the measured points ``[points, points]`` from the resamples.

    Few blocks leave its small eigenvalues too small, so correlations are shrunk: by the share of points over blocks, at
    most a half.
    """
    replicates = curve.replicates[:, 1:]
    points, blocks = replicates.shape[1], max(curve.blocks, 2)
    if len(replicates) < 2:
        return np.zeros((points, points))
    measured = np.atleast_2d(np.cov(replicates.T)) * blocks / (blocks - 1)
    shrink = min(0.5, points / blocks)
    shrunk: Floats = (1 - shrink) * measured + shrink * np.diag(np.diag(measured))
    return shrunk


def few(curve: Curve, among: Sequence[Shape]) -> Threshold:
    """Answer for a curve that is too short for shapes with a knee."""
    return too_few(len(curve.x) - 1, min(shape.least for shape in among))


def too_few(points: int, needed: int, what: str = "knee") -> Threshold:
    """Answer for a curve that is too short."""
    return Threshold(TOO_FEW, f"{points} measured point{'' if points == 1 else 's'}; a {what} needs {needed}")


def _interval(values: Floats, confidence: float, blocks: int) -> tuple[float | None, float | None]:
    low, high = interval(values, confidence, blocks)
    return (None if math.isnan(low) else low), (None if math.isnan(high) else high)


def _between(x: Floats, position: float) -> tuple[float, float]:
    right = int(np.clip(np.searchsorted(x, position), 1, len(x) - 1))
    return float(x[right - 1]), float(x[right])


def _gap_at_an_end(x: Floats, knee: float) -> tuple[tuple[float, float], str] | None:
    """Name the first or last gap between points where a bend lies in it: there two lines cannot place it."""
    if knee <= x[1]:
        return (0.0, float(x[1])), "the bend lies before the first point: a point before it is needed"
    if knee >= x[-2]:
        between = (float(x[-2]), float(x[-1]))
        return between, "the bend lies between the last two points: a point between or beyond them is needed"
    return None
