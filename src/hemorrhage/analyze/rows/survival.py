"""How long a variant writes what the base model writes, under greedy search.

The first token at which two texts differ is a time; a text that ends, or is cut at its limit, before it differs is
censored there. Kaplan and Meier's estimate (1958, doi 10.1080/01621459.1958.10501452) is of the share of texts that
still agree after t tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Tokens after which the share of agreeing texts becomes a row."""


@dataclass(frozen=True)
class Times:
    """``tokens`` [texts]: at which a text differs first (from 1), or after which nothing more is known; ``seen``
    [texts]: whether it differs."""

    tokens: Integers
    seen: np.ndarray


@dataclass(frozen=True)
class Survival:
    """Share of agreeing texts after ``at`` [points] tokens with its interval, and the mean of agreeing tokens."""

    at: Integers
    share: Floats
    low: Floats
    high: Floats
    mean: float
    mean_low: float
    mean_high: float
    texts: int
    differing: int


def find_divergence(base: Sequence[int], other: Sequence[int]) -> tuple[int, bool]:
    """The first token (from 1) at which two texts differ and True, or the length of equal ones and False."""
    for place, (one, two) in enumerate(zip(base, other, strict=False), 1):
        if one != two:
            return place, True
    shorter, longer = sorted((len(base), len(other)))
    return (shorter + 1, True) if shorter < longer else (longer, False)


def divergence_times(base: pd.DataFrame, variant: pd.DataFrame) -> Times:
    """Of the texts of the same items; frames have ``item`` and ``tokens``."""
    joined = base.merge(variant, on="item", suffixes=("_base", "_variant"), validate="one_to_one")
    found = [
        find_divergence(list(one), list(two))
        for one, two in zip(joined["tokens_base"], joined["tokens_variant"], strict=True)
    ]
    return Times(np.array([place for place, _ in found]), np.array([differs for _, differs in found], dtype=bool))


def survival(found: Times, dataset: str, spec: Spec) -> Survival:
    """The curve at every token up to the longest text; its ends are Greenwood's log-log interval, where one is known.

    The mean is that of tokens up to the longest text, with a bootstrap over texts.
    """
    horizon = int(found.tokens.max())
    curve = stats.ecdf(stats.CensoredData(uncensored=found.tokens[found.seen], right=found.tokens[~found.seen])).sf
    at = np.arange(horizon + 1)
    limits: list[Floats] = []
    if found.seen.any():
        ends = curve.confidence_interval(confidence_level=spec.confidence, method="log-log")
        limits = [np.asarray(side.evaluate(at), dtype=np.float64) for side in (ends.low, ends.high)]
    else:
        limits = [np.full(len(at), np.nan)] * 2
    counts = bootstrap.draws(dataset, len(found.tokens), spec.resamples, spec.seed)
    means = mean_agreement(found, counts, horizon)
    low, high = bootstrap.interval(means, spec.confidence, len(found.tokens))
    whole = np.ones((1, len(found.tokens)), dtype=np.int64)
    return Survival(
        at=at,
        share=np.asarray(curve.evaluate(at), dtype=np.float64),
        low=limits[0],
        high=limits[1],
        mean=float(mean_agreement(found, whole, horizon)[0]),
        mean_low=low,
        mean_high=high,
        texts=len(found.tokens),
        differing=int(found.seen.sum()),
    )


def mean_agreement(found: Times, counts: Integers, horizon: int) -> Floats:
    """Mean of agreeing tokens up to ``horizon`` in each resample: the area under the curve. ``counts`` [n, texts]."""
    steps = np.arange(1, horizon + 1)[:, None]
    risk = counts @ (found.tokens[None, :] >= steps).T
    fell = counts @ ((found.tokens[None, :] == steps) & found.seen).T
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(risk > 0, 1 - fell / risk, 1.0)
    after = np.cumprod(kept, axis=1)
    return np.asarray(after.sum(axis=1), dtype=np.float64)


def points(found: Survival) -> Iterator[tuple[int, float, float, float]]:
    """(tokens, share, low, high) at the tokens of GRID that the texts reach."""
    for tokens in GRID:
        if tokens < len(found.at):
            yield tokens, float(found.share[tokens]), float(found.low[tokens]), float(found.high[tokens])
