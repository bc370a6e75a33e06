"""Tests of paired differences, and what they could have detected.

Every test is the same: if an alteration does nothing, each block's difference to the base is as likely to
have the other sign (Fisher's randomization test). Blocks are windows of text, or groups of items that share choices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, stats

from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

POWER = 0.8
EXACT_BLOCKS = 12
"""Up to so many blocks that differ, all their signs are tried; beyond, FLIPS of them drawn at random."""

FLIPS = 9_999
CHUNK = 1_000


def sign_flip(
    differences: Floats, seed: int, alternative: Literal["two-sided", "greater"] = "two-sided", flips: int = FLIPS
) -> float:
    """p-value of the sum of ``differences`` (``[blocks]``) under random signs.

    Exact for up to EXACT_BLOCKS blocks that differ; else (1 + as large) / (1 + flips), which is a valid p-value too
    (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585).
    """
    differing = differences[differences != 0]
    if len(differing) == 0:
        return 1.0
    # Sums of the same numbers in another order differ by rounding.
    reached = _statistic(differing.sum(), alternative) - 1e-12 * float(np.abs(differing).sum())
    if len(differing) <= EXACT_BLOCKS:
        bits = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1
        return float(np.mean(_statistic((1 - 2 * bits) @ differing, alternative) >= reached))
    generator = np.random.default_rng([seed, len(differing)])
    as_large = 0
    for start in range(0, flips, CHUNK):
        signs = generator.integers(0, 2, (min(CHUNK, flips - start), len(differing)), dtype=np.int8)
        as_large += int((_statistic((1.0 - 2.0 * signs) @ differing, alternative) >= reached).sum())
    return (1 + as_large) / (1 + flips)


def _statistic(sums: Floats, alternative: str) -> Floats:
    return sums if alternative == "greater" else np.abs(sums)


def mcnemar(net: Integers) -> float:
    """Exact two-sided p-value of paired answers, from each group's change in the number of right ones: ``[groups]``.

    The distribution of the sum under random signs is computed, not sampled: groups with the same absolute change are a
    binomial, and those are convolved. Where every group is one item, this is McNemar's exact test.
    """
    sizes, groups = np.unique(np.abs(net[net != 0]), return_counts=True)
    distribution = np.ones(1)
    for size, count in zip(sizes.tolist(), groups.tolist(), strict=True):
        turned = np.zeros(2 * size * count + 1)
        turned[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, turned)
    largest = (len(distribution) - 1) // 2
    sums = np.arange(-largest, largest + 1)
    return float(min(distribution[np.abs(sums) >= abs(int(net.sum()))].sum(), 1.0))


def largest_differences(
    differences: Floats, seed: int, alternative: Literal["two-sided", "greater"] = "two-sided"
) -> Floats:
    """p-values ``[columns]`` of the sums of ``differences`` ``[blocks, columns]``, corrected for all columns.

    Each column's studentized sum is compared with the largest of all columns under random signs of the blocks
    (Westfall and Young 1993, single-step max T): that any p-value is at most a where no column differs has a chance of
    a.
    """
    scale = np.sqrt((differences**2).sum(axis=0))
    studentized = differences / np.where(scale > 0, scale, 1.0)
    reached = _statistic(studentized.sum(axis=0), alternative)
    generator = np.random.default_rng([seed, 5])
    as_large = np.zeros(len(reached))
    for start in range(0, FLIPS, CHUNK):
        shape = (min(CHUNK, FLIPS - start), len(differences))
        largest = _statistic(generator.choice([-1.0, 1.0], shape) @ studentized, alternative).max(axis=1)
        as_large += (largest[:, None] >= reached - 1e-12).sum(axis=0)
    return np.asarray((1 + as_large) / (1 + FLIPS))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for being several (Holm, Scandinavian Journal of Statistics 1979 6:65)."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(p) - rank) * p[index], 1.0))
        corrected[index] = largest
    return corrected


def q_values(p: Floats) -> Floats:
    """Benjamini and Hochberg's (1995): the false discovery rate at which each of ``[tests]`` would be significant."""
    return np.asarray(stats.false_discovery_control(p), dtype=np.float64)


def detectable_mean(differences: Floats, sizes: Floats, confidence: float) -> float:
    """Smallest true mean per token that a two-sided test detects with a power of POWER; NaN where it is unknown.

    ``differences``: sums per block, ``sizes``: tokens per block, both ``[blocks]``. It is
    (t_(1+confidence)/2 + t_POWER) standard errors, of a ratio of sums (Bloom 1995, doi 10.1177/0193841X9501900504).
    """
    blocks = len(differences)
    if blocks < 2:
        return math.nan
    error = bootstrap.standard_error(differences, sizes)
    quantiles = stats.t.ppf([(1 + confidence) / 2, POWER], blocks - 1)
    return float(quantiles.sum() * error) or math.nan


@functools.lru_cache(maxsize=4096)
def detectable_change(items: int, discordant: float, confidence: float) -> float:
    """Smallest true change of accuracy that McNemar's exact test detects with a power of POWER; NaN where none is.

    ``items``: independent items, ``discordant``: share of them that one model gets right and the other wrong; a change
    takes at least as many, all in one direction.
    """

    def lacking(change: float) -> float:
        return POWER - power(items, max(discordant, change), change, confidence)

    if items < 1 or lacking(1.0) > 0:
        return math.nan
    return float(optimize.brentq(lacking, 0.0, 1.0, xtol=1e-5))


def power(items: int, discordant: float, change: float, confidence: float) -> float:
    """Probability that McNemar's exact test is significant: over the number of discordant items, and their sides."""
    if discordant == 0:
        return 0.0
    spread = 8 * math.sqrt(items * discordant * (1 - discordant)) + 1
    least, most = max(items * discordant - spread, 0), min(items * discordant + spread, items)
    pairs = np.arange(int(least), math.ceil(most) + 1)
    critical = stats.binom.ppf((1 - confidence) / 2, pairs, 0.5)
    critical = critical - (2 * stats.binom.cdf(critical, pairs, 0.5) > 1 - confidence + 1e-12)
    better = min((1 + change / discordant) / 2, 1.0)
    detected = stats.binom.cdf(critical, pairs, better) + stats.binom.sf(pairs - critical - 1, pairs, better)
    return float((stats.binom.pmf(pairs, items, discordant) * detected).sum())
