"""Scaling laws of damage, as baselines of the predictor: the rise of the loss by size, data and setting.

- ``published``: rounding weights to P bits, dLoss = 0.017 D^0.5251 / (N^0.2261 P^5.4967) with D tokens of training and
  N parameters outside of the embeddings (arXiv 2411.17691, fitted on GPTQ and Pythia).
- ``quantization``: the same form with all four constants fitted to the rows at hand.
- ``precision``: dLoss = C D^g / N^h exp(-P / gamma) (arXiv 2411.04330), constants fitted.
- ``quadratic``: dLoss = a r + b r² in the share r that is pruned or removed (arXiv 2504.04342), constants fitted for
  each axis.

Fits are of ln dLoss by least squares, of the quadratic law of dLoss with a, b >= 0; dLoss between FLOOR and CAP.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from hemorrhage.analyze.doctor.features import OF_BITS, OF_DATA, OF_SIZE, K
from hemorrhage.analyze.stats.bootstrap import Floats

FLOOR, CAP = 1e-3, 5.0
"""Nats of damage below which noise rules and above which a model is broken in any case."""

Law = Callable[[pd.DataFrame, Floats, pd.DataFrame], Floats]
"""Rows and damage to fit on, rows to predict -> damage, NaN where the law says nothing."""


def published(_known: pd.DataFrame, _damage: Floats, wanted: pd.DataFrame) -> Floats:
    """Apply the law of 2411.17691 as it is published."""
    return _columns(wanted, lambda n, d, p: K * d**OF_DATA / (n**OF_SIZE * p**OF_BITS))


def quantization(known: pd.DataFrame, damage: Floats, wanted: pd.DataFrame) -> Floats:
    """Fit its form to ``known``."""
    return _log_linear(known, damage, wanted, lambda n, d, p: [np.log(d), np.log(n), np.log(p)])


def precision(known: pd.DataFrame, damage: Floats, wanted: pd.DataFrame) -> Floats:
    """Fit the form of 2411.04330 to ``known``."""
    return _log_linear(known, damage, wanted, lambda n, d, p: [np.log(d), np.log(n), p])


def quadratic(known: pd.DataFrame, damage: Floats, wanted: pd.DataFrame) -> Floats:
    """Fit a r + b r² for each axis."""
    predicted = np.full(len(wanted), np.nan)
    for axis in ("sparsity", "removed"):
        fitted, covered = (known["axis"] == axis).to_numpy(), (wanted["axis"] == axis).to_numpy()
        if fitted.sum() < 2 or not covered.any():
            continue
        r, y = known.loc[fitted, "share"].to_numpy(float), np.clip(damage[fitted], 0, CAP)
        constants, _ = nnls(np.stack([r, r**2], axis=1), y)
        s = wanted.loc[covered, "share"].to_numpy(float)
        predicted[covered] = constants[0] * s + constants[1] * s**2
    clipped: Floats = np.clip(predicted, FLOOR, CAP)
    return clipped


def together(known: pd.DataFrame, damage: Floats, wanted: pd.DataFrame) -> Floats:
    """Apply the fitted law that speaks of a row; else the median damage of its axis, or of all."""
    predicted = quantization(known, damage, wanted)
    predicted = np.where(np.isnan(predicted), quadratic(known, damage, wanted), predicted)
    middle = pd.Series(damage).groupby(known["axis"].to_numpy()).median()
    rest = wanted["axis"].map(middle).fillna(float(np.median(damage))).to_numpy(float)
    return np.clip(np.where(np.isnan(predicted), rest, predicted), FLOOR, CAP)


LAWS: dict[str, Law] = {
    "published": published,
    "quantization": quantization,
    "precision": precision,
    "quadratic": quadratic,
    "together": together,
}


def chinchilla(sizes: Floats, tokens: Floats, losses: Floats) -> Callable[[Floats, Floats], Floats]:
    """L = E + A / N^a + B / D^b fitted to base models of one tokenizer on one text (Hoffmann et al., arXiv 2203.15556).

    The exponents go through a grid, and E, A, B >= 0 are least squares for each: the fit has no local optimum. Returns
    the law. Raises ValueError for fewer than four models.
    """
    if len(losses) < 4:
        raise ValueError(f"{len(losses)} models are too few for three constants")
    best: tuple[float, tuple[float, float], Floats] | None = None
    exponents = np.linspace(0.1, 1.0, 10)
    for a in exponents:
        for b in exponents:
            terms = np.stack([np.ones_like(sizes), sizes**-a, tokens**-b], axis=1)
            scale = terms.max(axis=0)
            constants, rest = nnls(terms / scale, losses)
            if best is None or rest < best[0]:
                best = (rest, (a, b), constants / scale)
    assert best is not None
    _, (a, b), constants = best
    return lambda n, d: constants[0] + constants[1] * n**-a + constants[2] * d**-b


def _columns(rows: pd.DataFrame, law: Callable[..., Floats]) -> Floats:
    n, d, p = (rows[name].to_numpy(float) for name in ("in_layers", "trained_tokens", "bits"))
    speaks = (rows["axis"] == "bits").to_numpy() & (rows["on"] == "").to_numpy()
    return np.where(speaks, np.clip(law(n, d, p), FLOOR, CAP), np.nan)


def _log_linear(
    known: pd.DataFrame, damage: Floats, wanted: pd.DataFrame, terms: Callable[..., list[Floats]]
) -> Floats:
    def design(rows: pd.DataFrame) -> Floats:
        n, d, p = (rows[name].to_numpy(float) for name in ("in_layers", "trained_tokens", "bits"))
        return np.stack([np.ones(len(rows)), *terms(n, d, p)], axis=1)

    speaks = ((known["axis"] == "bits") & (known["on"] == "")).to_numpy()
    x = design(known)
    usable = speaks & np.isfinite(x).all(axis=1)
    if usable.sum() < 5:
        return np.full(len(wanted), np.nan)
    y = np.log(np.clip(damage[usable], FLOOR, CAP))
    constants, *_ = np.linalg.lstsq(x[usable], y, rcond=1e-6)
    return _columns(wanted, lambda *_: np.exp(np.clip(design(wanted) @ constants, -20, 20)))
