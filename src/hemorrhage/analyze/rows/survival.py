"""How long a variant writes what the base model writes, under greedy search.

The first token at which two texts differ is a time; a text that ends, or is cut at its limit, before it differs is
censored there. Kaplan and Meier's estimate (1958, doi 10.1080/01621459.1958.10501452) is of the share of texts that
still agree after t tokens.
"""

from __future__ import annotations

import json
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


def greedy_texts(texts: pd.DataFrame) -> pd.DataFrame:
    """Return the texts of greedy search, its first strategy's where there are several; none without it."""
    greedy = texts[texts["settings"].map(lambda text: json.loads(text)["strategy"]) == "greedy"]
    return greedy[(greedy["strategy"].isin(greedy["strategy"].unique()[:1])) & (greedy["draw"] == 0)]


def find_divergence(base: Sequence[int], other: Sequence[int]) -> tuple[int, bool]:
    """Find the first token (from 1) at which two texts differ and True, or the length of equal ones and False."""
    for position, (ours, theirs) in enumerate(zip(base, other, strict=False), 1):
        if ours != theirs:
            return position, True
    shorter, longer = sorted((len(base), len(other)))
    return (shorter + 1, True) if shorter < longer else (longer, False)


def divergence_times(base: pd.DataFrame, variant: pd.DataFrame) -> Times:
    """Compare the texts of the same items; frames have ``item`` and ``tokens``."""
    joined = base.merge(variant, on="item", suffixes=("_base", "_variant"), validate="one_to_one")
    texts = zip(joined["tokens_base"], joined["tokens_variant"], strict=True)
    tokens, seen = zip(*(find_divergence(list(ours), list(theirs)) for ours, theirs in texts), strict=True)
    return Times(np.array(tokens), np.array(seen, dtype=bool))


def survival(times: Times, dataset: str, spec: Spec) -> Survival:
    """Estimate the curve at every token up to the longest text, with Greenwood's log-log interval where it is known.

    The mean is that of tokens up to the longest text, with a bootstrap over texts.
    """
    horizon = int(times.tokens.max())
    curve = stats.ecdf(stats.CensoredData(uncensored=times.tokens[times.seen], right=times.tokens[~times.seen])).sf
    at = np.arange(horizon + 1)
    limits: list[Floats] = []
    if times.seen.any():
        ends = curve.confidence_interval(confidence_level=spec.confidence, method="log-log")
        limits = [np.asarray(side.evaluate(at), dtype=np.float64) for side in (ends.low, ends.high)]
    else:
        limits = [np.full(len(at), np.nan)] * 2
    counts = bootstrap.draws(dataset, len(times.tokens), spec.resamples, spec.seed)
    means = mean_agreement(times, counts, horizon)
    low, high = bootstrap.interval(means, spec.confidence, len(times.tokens))
    whole = np.ones((1, len(times.tokens)), dtype=np.int64)
    return Survival(
        at=at,
        share=np.asarray(curve.evaluate(at), dtype=np.float64),
        low=limits[0],
        high=limits[1],
        mean=float(mean_agreement(times, whole, horizon)[0]),
        mean_low=low,
        mean_high=high,
        texts=len(times.tokens),
        differing=int(times.seen.sum()),
    )


def mean_agreement(times: Times, counts: Integers, horizon: int) -> Floats:
    """Mean of agreeing tokens up to ``horizon`` in each resample: the area under the curve. ``counts`` [n, texts]."""
    steps = np.arange(1, horizon + 1)[:, None]
    risk = counts @ (times.tokens[None, :] >= steps).T
    diverged = counts @ ((times.tokens[None, :] == steps) & times.seen).T
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(risk > 0, 1 - diverged / risk, 1.0)
    after = np.cumprod(kept, axis=1)
    return np.asarray(after.sum(axis=1), dtype=np.float64)


def points(curve: Survival) -> Iterator[tuple[int, float, float, float]]:
    """(tokens, share, low, high) at the tokens of GRID that the texts reach."""
    for tokens in GRID:
        if tokens < len(curve.at):
            yield tokens, float(curve.share[tokens]), float(curve.low[tokens]), float(curve.high[tokens])
