"""Intervals: the paired block bootstrap, Wilson's and Newcombe's score intervals, and those of items in groups.

The unit that is resampled is a block: a window of text, or a group of items of a task that share their choices.
Tokens of one window depend on each other, so resampling tokens would give intervals that are too narrow. Every
variant sees the same resampled blocks (:func:`draws` depends on the text and the seed only), which pairs it with the
base and with every other variant.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CELL = 64
"""Tokens per cell of the coarse search in :func:`quantiles`."""


def draws(text: str, blocks: int, resamples: int, seed: int) -> Integers:
    """Draw how often each block is in each resample: int64 ``[resamples, blocks]``, rows sum to ``blocks``.

    The same ``text``, number of blocks and seed give the same resamples, whatever is measured on them.
    """
    generator = np.random.default_rng([seed, zlib.crc32(text.encode())])
    return generator.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=resamples)


def interval(replicates: Floats, confidence: float, blocks: int) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates, with the percentiles moved out for few blocks.

    The plain percentile interval of a mean is too narrow by sqrt((n-1)/n) and ignores that the spread is
    estimated; with 16 blocks a nominal 95 % covers about 91 %. Taking the percentiles of Student's t instead
    of the normal's repairs both (the expanded percentile interval: Hesterberg, The American Statistician
    2015, doi 10.1080/00031305.2015.1089789).
    """
    if blocks < 2:
        return math.nan, math.nan
    tail = _tail(confidence, blocks)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def interval_of_ratio(replicates: Floats, confidence: float, blocks: int) -> tuple[float, float]:
    """``interval`` of what some resamples leave undefined, such as a ratio to an accuracy that may be 0.

    Unknown, (NaN, NaN), where more of them do than a tail of the interval holds: the rest would tell of the resamples
    that happened to have right answers, not of the model.
    """
    defined = replicates[np.isfinite(replicates)]
    if len(replicates) - len(defined) > (1 - confidence) / 2 * len(replicates):
        return math.nan, math.nan
    return interval(defined, confidence, blocks)


@functools.cache
def _tail(confidence: float, blocks: int) -> float:
    return float(stats.norm.sf(_students(confidence, blocks - 1) * math.sqrt(blocks / (blocks - 1))))


@functools.cache
def _students(confidence: float, freedom: int) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def means(counts: Integers, sums: Floats, sizes: Integers) -> Floats:
    """Mean per token in each resample: float64 ``[resamples]``, from sums and numbers of tokens per block."""
    return (counts @ sums) / (counts @ sizes)


def standard_error(sums: Floats, sizes: Floats | Integers) -> float:
    """Return the standard error of a mean per token, from sums and numbers of tokens per block; NaN for one block.

    The mean is a ratio of two sums over blocks; its error is that of its linearization.
    """
    blocks = len(sums)
    if blocks < 2:
        return math.nan
    left = ((sums - sums.sum() / sizes.sum() * sizes) ** 2).sum()
    return math.sqrt(blocks / (blocks - 1) * float(left)) / float(sizes.sum())


def quantiles(values: Floats, blocks: Integers, counts: Integers, levels: Sequence[float]) -> Floats:
    """Quantiles over tokens in each resample: float64 ``[levels, resamples]``.

    ``values`` and ``blocks`` (the number of each token's block) are ``[tokens]``. A quantile is the smallest
    value below which, itself included, lies at least the given share of the resampled tokens (the inverse of
    the empirical distribution). Cells of sorted tokens are counted with one matrix product; only the cell
    that holds the quantile is searched token by token.
    """
    order = np.argsort(values, kind="stable")
    values, blocks = values[order], blocks[order]
    cells = -(-len(values) // CELL)
    flat = np.arange(len(values)) // CELL * counts.shape[1] + blocks
    in_cell = np.bincount(flat, minlength=cells * counts.shape[1]).reshape(cells, counts.shape[1])
    until = np.cumsum(counts.astype(np.float64) @ in_cell.T, axis=1)  # floats multiply fast, and these are exact
    reached_values = np.empty((len(levels), len(counts)))
    rows = np.arange(len(counts))[:, None]
    for index, level in enumerate(levels):
        needed = np.maximum(np.ceil(level * until[:, -1] - 1e-9), 1)
        cell = (until < needed[:, None]).sum(axis=1)
        before = np.where(cell > 0, until[rows[:, 0], np.maximum(cell - 1, 0)], 0)
        tokens = np.minimum(cell[:, None] * CELL + np.arange(CELL), len(values) - 1)
        reached = before[:, None] + np.cumsum(counts[rows, blocks[tokens]], axis=1)
        reached_values[index] = values[tokens[rows[:, 0], (reached < needed[:, None]).sum(axis=1)]]
    return reached_values


def t_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Student's interval of a mean; unknown with fewer than 3 values."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return t_interval_of(float(values.mean()), spread, len(values), confidence)


def t_interval_of(mean: float, spread: float, n: int, confidence: float) -> tuple[float, float]:
    """Return the same of ``n`` values with that ``mean`` and standard deviation ``spread`` (of n - 1)."""
    if n < 3:
        return math.nan, math.nan
    half = _students(confidence, n - 1) * spread / math.sqrt(n)
    return mean - half, mean + half


def effective_size(values: Floats, groups: Integers, confidence: float) -> float:
    """Count the independent items that are worth as much as these, which come in groups.

    ``values``: ``[items]``, or ``[measurements, items]`` of the same items, whose variances are added up; ``groups``:
    ``[items]``. With n items of mean m and variance v (the square's mean less m^2) in G groups that hold n_g items of
    sum s_g, the variance of m is V = G/(G-1) sum_g (s_g - n_g m)^2 / n^2 (the ratio estimator's, by linearization), the
    design effect d = V / (v/n), and the effective size n/d times (t_{n-1} / t_{G-1})^2, t Student's quantile, at most
    n: Korn and Graubard, Survey Methodology 1998 24:193. Where all values are equal nothing can be seen of the design,
    and each group counts once.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    n, count = len(group), len(sizes)
    if count == n or n < 2:
        return float(n)
    measured = np.atleast_2d(values)
    spread = float(measured.var(axis=1).sum())
    if count < 2 or spread == 0:
        return float(count)
    sums = np.stack([np.bincount(group, weights=each) for each in measured])
    left = sums - sizes * measured.mean(axis=1, keepdims=True)
    variance = count / (count - 1) * float((left**2).sum()) / n**2
    shrunk = (_students(confidence, n - 1) / _students(confidence, count - 1)) ** 2
    return float(n) if variance == 0 else min(spread / variance * shrunk, float(n))


def wilson(successes: float, trials: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Journal of the American Statistical Association 1927).

    Numbers of items in groups are scaled to their effective size, so they need not be whole.
    """
    if trials == 0:
        return math.nan, math.nan
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(max(share * (1 - share), 0.0) / trials + z * z / (4 * trials * trials))
    # At none and at all of them the limit is a whole number, and the difference is not quite.
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return (0.0 if successes <= 0 else low), (1.0 if successes >= trials else high)


def newcombe(table: Sequence[Sequence[float]], confidence: float) -> tuple[float, float]:
    """Interval of the difference of two shares measured on the same items.

    ``table[i][j]``: items that the first got right (i = 0) or wrong (i = 1) and the second right (j = 0) or
    wrong (j = 1); the difference is first minus second. Method 10 of Newcombe, Statistics in Medicine 1998
    17:2635: Wilson's limits of both shares, joined with the correlation of the items.
    """
    (both, first), (second, neither) = table
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    low1, high1 = wilson(both + first, n, confidence)
    low2, high2 = wilson(both + second, n, confidence)
    phi = _phi(both, first, second, neither)
    down = math.sqrt(max((p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2, 0.0))
    up = math.sqrt(max((high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2, 0.0))
    return p1 - p2 - down, p1 - p2 + up


def _phi(both: float, first: float, second: float, neither: float) -> float:
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = both * neither - first * second
    if product > 0:  # the continuity correction of method 10, for positive correlation only
        product = max(product - (both + first + second + neither) / 2, 0.0)
    return product / math.sqrt(margins)
