"""Fits of shapes against those of a general solver, and the criterion against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmarks.coverage import broken
from scipy import optimize

from hemorrhage.analyze.curves.shapes import SHAPES, Points, criterion

BY_NAME = {shape.name: shape for shape in SHAPES}

MODELS: dict[str, tuple[Callable[..., Any], list[float]]] = {
    "linear": (lambda x, a: a * x, [1.0]),
    "quadratic": (lambda x, a, b: a * x + b * x**2, [1.0, 1.0]),
    "exponential": (lambda x, a, b: a * np.expm1(b * x), [0.1, 5.0]),
    "two_segments": (lambda x, a, b, k: a * x + b * np.maximum(x - k, 0), [0.5, 5.0, 0.45]),
    "power_exponential_straight": (
        lambda x, a, b, c, k: a + b * np.log(np.minimum(x, k)) + c * np.maximum(x - k, 0),
        [1.0, 0.3, 5.0, 0.45],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_is_the_weighted_least_squares_of_a_general_solver(name: str) -> None:
    model, start = MODELS[name]
    rng = np.random.default_rng(1)
    x = np.arange(1, 9) / 10
    y = broken(0.45)(x) + rng.normal(0, 0.05, len(x))
    root = rng.normal(size=(8, 8)) * 0.01 + 0.03 * np.eye(8)
    points = Points(x, y, root @ root.T)
    shape = BY_NAME[name]
    misfit = float(points.misfits[3])
    fits = points.fit(shape, y[None, :], np.array([misfit]))
    whitened = np.linalg.inv(np.linalg.cholesky(points.covariance + misfit**2 * np.eye(8)))
    slow = optimize.least_squares(lambda p: whitened @ (y - model(x, *p)), start, xtol=1e-12, ftol=1e-12)
    volume = np.linalg.slogdet(points.covariance + misfit**2 * np.eye(8))[1]
    # The grid of knees and rates may miss the optimum by a little, never beat it.
    assert fits.deviance[0] - volume == pytest.approx(2 * slow.cost, rel=0.01, abs=0.02)
    assert fits.deviance[0] - volume >= 2 * slow.cost * (1 - 1e-6)


def test_the_criterion_is_schwarz_s_where_points_have_no_noise() -> None:
    x = np.arange(1, 9) / 10
    y = 2 * x + 0.1 * np.sin(40 * x)
    points = Points(x, y, np.zeros((8, 8)))
    values = {}
    for name in ("linear", "quadratic"):
        design = np.stack([x**power for power in range(1, BY_NAME[name].parameters + 1)], axis=1)
        rss = np.linalg.lstsq(design, y, rcond=None)[1][0]
        values[name] = 8 * math.log(rss / 8) + 8 + BY_NAME[name].parameters * math.log(8)
        misfits = np.geomspace(1e-3, 1, 2000)
        found = criterion(BY_NAME[name], points.fit(BY_NAME[name], y[None, :], misfits), 8)[0]
        assert found == pytest.approx(values[name], abs=1e-3)


def test_points_that_share_their_noise_are_weighed_with_it() -> None:
    # All points move together: the noise of one point alone would hide the bend.
    x = np.arange(1, 7) / 10
    shared = 0.3**2 * np.outer(x, x) + 1e-6 * np.eye(6)
    apart = np.diag(np.diag(shared))
    y = x + 0.25 * np.maximum(x - 0.35, 0)
    gains = []
    for covariance in (shared, apart):
        points = Points(x, y, covariance)
        fits = {name: points.fit(BY_NAME[name], y[None, :]) for name in ("linear", "two_segments")}
        gains.append(float(np.diff([criterion(BY_NAME[n], f, 6)[0] for n, f in fits.items()])[0]))
    assert gains[0] < 0 < gains[1]
