"""Intervals: the paired block bootstrap, Wilson's and Newcombe's score intervals.

The unit that is resampled is a block: a window of text, an item of a task. Tokens of one window depend on
each other, so resampling tokens would give intervals that are too narrow. Every variant sees the same
resampled blocks (:func:`draws` depends on the text and the seed only), which pairs it with the base and
with every other variant.
"""

from __future__ import annotations

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
    """How often each block stands in each resample: int64 ``[resamples, blocks]``, rows sum to ``blocks``.

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
    quantile = stats.t.ppf((1 + confidence) / 2, blocks - 1) * math.sqrt(blocks / (blocks - 1))
    tail = stats.norm.sf(quantile)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def means(counts: Integers, sums: Floats, sizes: Integers) -> Floats:
    """Mean per token in each resample: float64 ``[resamples]``, from sums and numbers of tokens per block."""
    return (counts @ sums) / (counts @ sizes)


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
    in_cell = np.zeros((cells, counts.shape[1]), dtype=np.int64)
    np.add.at(in_cell, (np.arange(len(values)) // CELL, blocks), 1)
    until = np.cumsum(counts @ in_cell.T, axis=1)
    found = np.empty((len(levels), len(counts)))
    rows = np.arange(len(counts))[:, None]
    for index, level in enumerate(levels):
        needed = np.maximum(np.ceil(level * until[:, -1] - 1e-9), 1)
        cell = (until < needed[:, None]).sum(axis=1)
        before = np.where(cell > 0, until[rows[:, 0], np.maximum(cell - 1, 0)], 0)
        tokens = np.minimum(cell[:, None] * CELL + np.arange(CELL), len(values) - 1)
        reached = before[:, None] + np.cumsum(counts[rows, blocks[tokens]], axis=1)
        found[index] = values[tokens[rows[:, 0], (reached < needed[:, None]).sum(axis=1)]]
    return found


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Journal of the American Statistical Association 1927)."""
    if trials == 0:
        return math.nan, math.nan
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def newcombe(table: Sequence[Sequence[int]], confidence: float) -> tuple[float, float]:
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


def _phi(both: int, first: int, second: int, neither: int) -> float:
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - first * second)
    if product > 0:  # the continuity correction of method 10, for positive correlation only
        product = max(product - (both + first + second + neither) / 2, 0.0)
    return product / math.sqrt(margins)
