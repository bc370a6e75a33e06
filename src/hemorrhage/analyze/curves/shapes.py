"""Shapes that a damage curve may have, fitted to points that are measured with correlated noise, and compared.

A curve is y over x, the distance from the base, where y = 0 by definition. The points of a curve were measured on the
same resampled windows, so their errors are correlated: their covariance S is known from the resamples. No shape is
exact either, so the covariance of a fit is V = S + t² I, where the misfit t is estimated with the shape. Schwarz's
criterion is ``ln |V| + r' V^-1 r + k ln n``: r the residuals, k the shape's parameters (t, which every shape has, is
left out), n the points. Where S is small it is the usual ``n ln(RSS / n) + k ln n``; where S is large it does not
reward a shape for following noise.

All shapes are linear in their coefficients once a knee, a rate or a power is given; those are searched on a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.special import expit

from hemorrhage.analyze.stats.bootstrap import Floats

RATES = np.concatenate([-np.geomspace(8, 0.3, 10), np.geomspace(0.3, 40, 100)])
"""Rates of the exponential, over the whole length of the curve; negative ones slow down."""

POWERS = np.array([0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0])
"""Powers of the power law through the base."""

SMOOTH_POWERS = np.geomspace(0.3, 12, 60)
"""Powers of the distance, of a shape without a knee."""

PLACES = np.concatenate([np.linspace(0.15, 1.2, 36), np.geomspace(1.3, 3, 6)])
"""Where a saturating shape has its middle, as a share of the curve's length."""

STEEPNESS = np.geomspace(2, 60, 20)
"""Steepness of a logistic curve, over the whole length of the curve."""

SKEWS = np.array([0.15, 0.4, 2.5, 6.0])
"""How much sooner or later than it sped up a curve of Richards slows down; 1 is the logistic curve."""

KNEES = 160
"""Positions at which a knee is tried, inside the range in which the points can tell it; a fourth with powers, too."""

MISFITS = 9
"""Misfits among which the most likely is searched."""

EXPECTED_MISFIT = 0.02
"""How far curves lie from every shape, as a share of their root mean square: what published ones show
(tests/analyze/curves/test_golden_thresholds_step.py), and what intervals assume before the residuals say more."""


@dataclass(frozen=True)
class Candidates:
    """Designs of one shape, ``[candidates, points, coefficients]``, and where each bends (NaN: nowhere).

    ``tangents`` ``[candidates, points, searched]``: how the curve moves with what is searched. ``rise`` ``[candidates,
    coefficients]``: how far the curve ends above the continuation of what comes before its knee is ``rise @
    coefficients``; a cliff has more than 0. Both are None for shapes without a knee.
    """

    designs: Floats
    knees: Floats
    tangents: Floats | None = None
    rise: Floats | None = None


CandidatesOf: TypeAlias = Callable[[Floats, Floats], Candidates]


@dataclass(frozen=True)
class Shape:
    """``parameters`` with knees, rates and powers counted; ``breaks``: it has a knee. ``candidates(x, at)`` are those
    for points measured at ``x``, with designs for the positions ``at``."""

    name: str
    parameters: int
    breaks: bool
    candidates: CandidatesOf

    @property
    def least(self) -> int:
        """The points it needs: with as many parameters as points everything fits, so one must be left."""
        return self.parameters + 1


def _polynomial(degree: int) -> CandidatesOf:
    def candidates(_x: Floats, at: Floats) -> Candidates:
        powers = np.arange(1, degree + 1)
        return Candidates((at[:, None] ** powers)[None], np.array([np.nan]))

    return candidates


def _exponential(x: Floats, at: Floats) -> Candidates:
    designs = np.expm1(RATES[:, None] * at / x[-1])[:, :, None]
    return Candidates(designs, np.full(len(RATES), np.nan))


def _power(x: Floats, at: Floats) -> Candidates:
    designs = ((at / x[-1]) ** SMOOTH_POWERS[:, None])[:, :, None]
    return Candidates(designs, np.full(len(SMOOTH_POWERS), np.nan))


def _saturating(curve: Callable[[Floats, Floats, Floats], Floats], places: Floats, steepness: Floats) -> CandidatesOf:
    """Make an S-shaped curve from the base: ``curve(at, place, steepness)``, its height a coefficient. Places and
    distances are shares of the curve's length."""

    def candidates(x: Floats, at: Floats) -> Candidates:
        place, steep = (axis.reshape(-1, 1) for axis in np.meshgrid(places, steepness, indexing="ij"))
        return Candidates(curve(at / x[-1], place, steep)[:, :, None], np.full(len(place), np.nan))

    return candidates


def _logistic(at: Floats, place: Floats, steepness: Floats) -> Floats:
    curve: Floats = expit(steepness * (at - place)) - expit(-steepness * place)
    return curve


def _hill(at: Floats, place: Floats, steepness: Floats) -> Floats:
    curve: Floats = at**steepness / (place**steepness + at**steepness)
    return curve


def _stretched(at: Floats, place: Floats, steepness: Floats) -> Floats:
    curve: Floats = -np.expm1(-((at / place) ** steepness))
    return curve


def _richards(x: Floats, at: Floats) -> Candidates:
    """Make a logistic curve that slows down sooner or later than it sped up (Richards, Journal of Experimental Botany
    1959 10:290)."""
    place, steep, skew = (axis.reshape(-1, 1) for axis in np.meshgrid(PLACES, STEEPNESS[::2], SKEWS, indexing="ij"))
    curve = (1 + skew * np.exp(-steep * (at / x[-1] - place))) ** (-1 / skew)
    start = (1 + skew * np.exp(steep * place)) ** (-1 / skew)
    return Candidates((curve - start)[:, :, None], np.full(len(place), np.nan))


def _with_line(smooth: CandidatesOf) -> CandidatesOf:
    """Make the sum of a smooth shape and a line through the base: it bends as gently or sharply as the shape does."""

    def candidates(x: Floats, at: Floats) -> Candidates:
        rise = smooth(x, at)
        lines = np.broadcast_to((at / x[-1])[None, :, None], (*rise.designs.shape[:2], 1))
        return Candidates(np.concatenate([lines, rise.designs], axis=2), rise.knees)

    return candidates


def _two_segments(x: Floats, at: Floats) -> Candidates:
    """Make lines that bend anywhere. Before the first point and beyond the last but one every position fits as well as
    every other: each of these gaps has one candidate, in its middle."""
    knees = np.concatenate([[x[0] / 2], _inside(x[0], x[-2], KNEES), [(x[-2] + x[-1]) / 2]])[:, None]
    designs = np.stack([np.broadcast_to(at, (len(knees), len(at))), np.maximum(at - knees, 0)], axis=2)
    rise = np.concatenate([np.zeros((len(knees), 1)), x[-1] - knees], axis=1)
    return Candidates(designs, knees[:, 0], _beyond(at, knees), rise)


def _power_exponential(square: bool) -> CandidatesOf:
    """``ln PPL = ln a + b ln s`` to the knee s0, then ``+ k (s - s0) + m (s - s0)²``; m is 0 without ``square``. The
    form of the study's follow-up, which does not go through the base: at s = 0 it has no damage but a PPL of 0."""

    def candidates(x: Floats, at: Floats) -> Candidates:
        knees = _inside(x[1], x[-3] if square else x[-2], KNEES)[:, None]
        over, last = np.maximum(at - knees, 0), x[-1] - knees
        columns = [np.ones_like(over), np.log(np.minimum(at, knees)), over]
        rise = [np.zeros_like(knees), -np.log(x[-1] / knees), last]
        if square:
            columns.append(over**2)
            rise.append(last**2)
        return Candidates(np.stack(columns, axis=2), knees[:, 0], _beyond(at, knees), np.concatenate(rise, axis=1))

    return candidates


def _anchored(square: bool) -> CandidatesOf:
    """Make the same with ``ln PPL = ln PPL0 + c s^b`` to the knee, so that it starts at the base."""

    def candidates(x: Floats, at: Floats) -> Candidates:
        grid = np.meshgrid(_inside(x[1], x[-3] if square else x[-2], KNEES // 4), POWERS, indexing="ij")
        knees, powers = (axis.reshape(-1, 1) for axis in grid)
        over, last = np.maximum(at - knees, 0), x[-1] - knees
        until, knee = np.minimum(at, knees) / x[-1], knees / x[-1]
        columns, rise = [until**powers, over], [knee**powers - 1, last]
        if square:
            columns.append(over**2)
            rise.append(last**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            by_power = np.where(until > 0, until**powers * np.log(until), 0.0)
        tangents = np.concatenate([_beyond(at, knees), by_power[:, :, None]], axis=2)
        return Candidates(np.stack(columns, axis=2), knees[:, 0], tangents, np.concatenate(rise, axis=1))

    return candidates


def _inside(low: float, high: float, number: int) -> Floats:
    return np.linspace(low, high, number + 2)[1:-1]


def _beyond(at: Floats, knees: Floats) -> Floats:
    """Say how a curve moves with its knee, but for what its other coefficients do as well: by a step."""
    return (at > knees).astype(float)[:, :, None]


SHAPES = (
    Shape("none", 0, False, _polynomial(0)),
    Shape("linear", 1, False, _polynomial(1)),
    Shape("quadratic", 2, False, _polynomial(2)),
    Shape("exponential", 2, False, _exponential),
    Shape("power", 2, False, _power),
    Shape("logistic", 3, False, _saturating(_logistic, PLACES, STEEPNESS)),
    Shape("hill", 3, False, _saturating(_hill, PLACES, np.geomspace(0.7, 20, 16))),
    Shape("saturating_power", 3, False, _saturating(_stretched, PLACES, np.geomspace(0.5, 12, 16))),
    Shape("line_power", 3, False, _with_line(_power)),
    Shape("line_logistic", 4, False, _with_line(_saturating(_logistic, PLACES[::2], STEEPNESS[::2]))),
    Shape("richards", 4, False, _richards),
    Shape("two_segments", 3, True, _two_segments),
    Shape("power_exponential", 5, True, _power_exponential(True)),
    Shape("power_exponential_straight", 4, True, _power_exponential(False)),
    Shape("anchored_power_exponential", 5, True, _anchored(True)),
    Shape("anchored_power_exponential_straight", 4, True, _anchored(False)),
)


@dataclass(frozen=True)
class Fits:
    """Best fits of one shape to several curves: arrays ``[curves]``. ``deviance`` is ln |V| + r' V^-1 r, infinite where
    the curve does not rise at any knee; ``knee`` is NaN where the shape has none; ``candidate``, ``misfit``: indices on
    the grids."""

    deviance: Floats
    knee: Floats
    candidate: np.ndarray
    misfit: np.ndarray


class Points:
    """Measured points of a curve: ``x`` ``[points]``, ascending, above 0; ``y`` ``[points]``; ``covariance`` of y."""

    def __init__(self, x: Floats, y: Floats, covariance: Floats) -> None:
        self.x, self.y = x, y
        self.size = float(np.sqrt((y**2).mean())) or 1.0
        # Without this a curve known exactly could not be weighed.
        self.covariance = covariance + (1e-5 * self.size) ** 2 * np.eye(len(x))
        # No shape is believed closer than any was found to be: a bend is more than what fits within the thickness of
        # a line.
        self.misfits = np.geomspace(EXPECTED_MISFIT * self.size, self.size, MISFITS)
        self._candidates: dict[str, Candidates] = {}
        self._projectors: dict[tuple[str, float], tuple[Floats, Floats | None]] = {}

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes that these points suffice for."""
        return tuple(shape for shape in SHAPES if len(self.x) >= shape.least)

    def candidates(self, shape: Shape) -> Candidates:
        """Return the designs of a shape at these points."""
        if shape.name not in self._candidates:
            self._candidates[shape.name] = shape.candidates(self.x, self.x)
        return self._candidates[shape.name]

    def weight(self, misfit: float) -> Floats:
        """V^-1 ``[points, points]``."""
        return np.asarray(np.linalg.inv(self.covariance + misfit**2 * np.eye(len(self.x))), dtype=np.float64)

    def fit(self, shape: Shape, curves: Floats, misfits: Floats | None = None) -> Fits:
        """Fit a shape to ``curves`` ``[curves, points]`` at these positions and with this noise.

        The misfit is the best of ``misfits``; those of this curve where nothing is said.
        """
        knees = self.candidates(shape).knees
        products = (curves[:, :, None] * curves[:, None, :]).reshape(len(curves), len(self.x) ** 2).T
        best: Fits | None = None
        for index, misfit in enumerate(self.misfits if misfits is None else misfits):
            residual, rise = self._projector(shape, float(misfit))
            rss = residual.reshape(len(knees), -1) @ products  # [candidates, curves]
            if rise is not None:
                rss = np.where(rise @ curves.T > 0, rss, np.inf)
            chosen = rss.argmin(axis=0)
            volume = float(np.linalg.slogdet(self.covariance + misfit**2 * np.eye(len(self.x)))[1])
            deviance = volume + rss[chosen, np.arange(len(curves))]
            fits = Fits(deviance, knees[chosen], chosen, np.full(len(curves), index))
            best = fits if best is None else _better(best, fits)
        assert best is not None
        return best

    def _projector(self, shape: Shape, misfit: float) -> tuple[Floats, Floats | None]:
        """For each candidate, the matrix A of r' V^-1 r = y' A y, and what gives its rise from y."""
        key = (shape.name, misfit)
        if key not in self._projectors:
            weight, candidates = self.weight(misfit), self.candidates(shape)
            solve = self._solve(candidates.designs, weight)  # [candidates, coefficients, points]
            residual = weight - weight @ candidates.designs @ solve
            rise = None if candidates.rise is None else np.einsum("cp,cpn->cn", candidates.rise, solve)
            self._projectors[key] = (residual, rise)
        return self._projectors[key]

    def _solve(self, design: Floats, weight: Floats) -> Floats:
        """(X' W X)^-1 X' W, which gives the coefficients from y."""
        if design.shape[2] == 0:
            return np.empty((len(design), 0, design.shape[1]))
        scale = np.maximum(np.sqrt((design**2).sum(axis=1, keepdims=True)), 1e-300)
        scaled = design / scale
        across = np.swapaxes(scaled, 1, 2) @ weight
        inner = across @ scaled
        # Columns that say the same at these points share what they explain.
        ridge = 1e-11 * np.trace(inner, axis1=1, axis2=2)[:, None, None] * np.eye(design.shape[2])
        solved: Floats = np.linalg.solve(inner + ridge, across) / np.swapaxes(scale, 1, 2)
        return solved

    def predict(self, shape: Shape, fits: Fits, at: Floats) -> Floats:
        """Return the values of the first fit of ``fits``, which is that of y, at the positions ``at``."""
        designs = shape.candidates(self.x, at).designs
        values: Floats = designs[fits.candidate[0]] @ self.coefficients(shape, fits)
        return values

    def coefficients(self, shape: Shape, fits: Fits) -> Floats:
        """Return the fit's coefficients."""
        design = self.candidates(shape).designs[fits.candidate[:1]]
        solved: Floats = self._solve(design, self.weight(self.misfits[fits.misfit[0]]))[0] @ self.y
        return solved

    def spread(self, shape: Shape, fits: Fits) -> float:
        """Estimate the misfit that leaves as much residual as its degrees of freedom should.

        Without the bias of the likelihood's own (Paule and Mandel, Journal of Research of the National Bureau of
        Standards 1982 87:377).
        """
        free, design = len(self.x) - shape.parameters, self.candidates(shape).designs[fits.candidate[:1]]

        def excess(misfit: float) -> float:
            weight = self.weight(misfit)
            residual = self.y - design[0] @ (self._solve(design, weight)[0] @ self.y)
            return float(residual @ weight @ residual) - free

        if free <= 0 or excess(0.0) <= 0:
            return 0.0
        low, high = 0.0, 2 * self.size
        while excess(high) > 0:
            high *= 2
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return (low + high) / 2

    def likely_misfits(self, shape: Shape, fits: Fits, draws: int, generator: np.random.Generator) -> Floats:
        """Draw misfits from what is known of it: ``[draws]``.

        The restricted likelihood of a shape with a knee, with a half-Cauchy prior (Gelman, Bayesian Analysis 2006
        1:515) of the scale ``EXPECTED_MISFIT`` of the curve's size: with one degree of freedom left the residuals alone
        say next to nothing.
        """
        tried = np.concatenate([[0.0], np.geomspace(0.002, 3.0, 40) * self.size])
        candidates, chosen = self.candidates(shape), fits.candidate[0]
        design = candidates.designs[chosen]
        assert candidates.tangents is not None
        whole = np.concatenate([design, candidates.tangents[chosen]], axis=1)
        whole = whole / np.maximum(np.sqrt((whole**2).sum(axis=0)), 1e-12)
        logs = []
        for misfit in tried:
            weight = self.weight(float(misfit))
            residual = self.y - design @ (self._solve(design[None], weight)[0] @ self.y)
            freedom = np.linalg.slogdet(whole.T @ weight @ whole + 1e-12 * np.eye(whole.shape[1]))[1]
            logs.append(np.linalg.slogdet(weight)[1] - freedom - residual @ weight @ residual)
        prior = np.gradient(tried) / (1 + (tried / (EXPECTED_MISFIT * self.size)) ** 2)
        density = np.exp((np.array(logs) - max(logs)) / 2) * prior
        drawn: Floats = generator.choice(tried, size=draws, p=density / density.sum())
        return drawn


def _better(first: Fits, second: Fits) -> Fits:
    """Take for each curve the fit with the smaller deviance."""
    take = second.deviance < first.deviance
    return Fits(
        np.where(take, second.deviance, first.deviance),
        np.where(take, second.knee, first.knee),
        np.where(take, second.candidate, first.candidate),
        np.where(take, second.misfit, first.misfit),
    )


def criterion(shape: Shape, fits: Fits, points: int) -> Floats:
    """Compute Schwarz's criterion: smaller is better."""
    return fits.deviance + shape.parameters * float(np.log(points))


def corrected_criterion(shape: Shape, fits: Fits, points: Points) -> float:
    """Compute Schwarz's criterion of the first fit, of which only the degrees of freedom that are left count.

    With few points a shape of many parameters leaves small residuals whatever they are: the deviance, per point and on
    the scale of the curve's size, is taken once for each of the ``n - k`` that the shape did not use up, as restricted
    likelihood does (Patterson and Thompson, Biometrika 1971 58:545).
    """
    n = len(points.x)
    scaled = float(fits.deviance[0]) / n - 2 * float(np.log(points.size))
    return scaled * (n - shape.parameters) + shape.parameters * float(np.log(n))
