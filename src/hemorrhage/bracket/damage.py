"""What a few windows say of a variant: the share of its limits that its damage uses up, with rough bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from hemorrhage.bracket.content import INSIDE, OUTSIDE, UNDECIDED

CONFIDENCE = 0.95
"""Of each bound, one-sided, by Student's quantile. It decides where to look, and nothing that is reported."""

LEAST = 1e-9
"""Nats below which a KL is rounding."""


@dataclass(frozen=True)
class Used:
    """Share of a limit that the damage uses up, and its bounds."""

    estimate: float
    low: float
    high: float


def used_shares(tokens: pd.DataFrame, budget: Mapping[str, float]) -> list[Used]:
    """Return the share of each limit of ``budget`` (kl, perplexity) that each corpus of tokens.parquet uses up."""
    shares = []
    for _, of_corpus in tokens.groupby("corpus", sort=False):
        windows = of_corpus.assign(loss=of_corpus["nll"] - of_corpus["base_nll"]).groupby("window")[["kl", "loss"]]
        means = windows.mean().astype(float)
        if "kl" in budget:
            shares.append(_of_kl(means["kl"].to_numpy(), budget["kl"]))
        if "perplexity" in budget:
            shares.append(_of_loss(means["loss"].to_numpy(), math.log(budget["perplexity"])))
    return shares


def _of_kl(windows: np.typing.NDArray[np.float64], limit: float) -> Used:
    """Bound a mean that is positive and skewed on a logarithmic scale."""
    mean = max(float(windows.mean()), LEAST)
    factor = math.exp(min(_half_width(windows) / mean, 20.0))
    return Used(mean / limit, mean / limit / factor, mean / limit * factor)


def _of_loss(windows: np.typing.NDArray[np.float64], limit: float) -> Used:
    mean, half = float(windows.mean()), _half_width(windows)
    return Used(mean / limit, (mean - half) / limit, (mean + half) / limit)


def _half_width(windows: np.typing.NDArray[np.float64]) -> float:
    error = float(windows.std(ddof=1)) / math.sqrt(len(windows))
    return error * float(stats.t.isf(1 - CONFIDENCE, len(windows) - 1))


def worst(shares: list[Used]) -> Used:
    """Return the share that is nearest its limit, or furthest beyond it."""
    return max(shares, key=lambda share: share.estimate)


def answer(shares: list[Used]) -> str:
    """Say on which side of the budget a variant probably is."""
    if any(share.low >= 1 for share in shares):
        return OUTSIDE
    return INSIDE if all(share.high < 1 for share in shares) else UNDECIDED
