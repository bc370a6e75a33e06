"""One-sided bounds that a limit is compared with, and how much must be measured to decide.

Damage of windows is skewed: most are hurt a little, a few a lot, and those are what a small sample misses. A sample
without them has a low mean and a small spread at once, so that Student's bound is too low. The bound here takes the
quantiles that Student's statistic has where the blocks are gamma distributed, with a skewness of half the square root
of their number, but between LEAST_SKEWNESS and MOST_SKEWNESS: a sample of n can show no skewness beyond that root, so
that it cannot exclude a rarer outlier either. Shares have the exact bounds of Clopper and Pearson (Biometrika 1934
26:404).

``level`` is the probability with which one bound may lie on the wrong side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import special

from hemorrhage.analyze.stats.bootstrap import Floats

POWER = 0.8
"""Probability with which a planned measurement decides."""

LEAST_SKEWNESS, MOST_SKEWNESS = 2.0, 4.0
"""The skewness that blocks are taken to have; that of an exponential distribution is 2."""

TYPICAL_SKEWNESS = 1.0
"""The skewness of blocks for which sizes are planned."""

MOST = 2**22
"""More blocks or items than so many are never asked for."""

LEVELS = (0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0005, 0.0002)
QUANTILES: dict[int, tuple[float, ...]] = {
    2: (2.73, 9.569, 20.91, 43.92, 113.7, 229.1, 457.7, 1157, 2354, 5478),
    3: (1.761, 4.626, 7.842, 12.4, 21.38, 31.42, 45.42, 74.48, 105.7, 168.2),
    4: (1.469, 3.534, 5.56, 8.098, 12.49, 16.9, 22.43, 31.85, 40.91, 57.05),
    6: (1.217, 2.737, 4.066, 5.573, 7.89, 9.966, 12.37, 16.25, 19.61, 24.04),
    8: (1.102, 2.395, 3.464, 4.63, 6.337, 7.795, 9.349, 11.74, 13.82, 16.69),
    12: (0.987, 2.074, 2.914, 3.778, 4.989, 5.997, 7.068, 8.602, 9.832, 11.5),
    16: (0.926, 1.914, 2.649, 3.394, 4.418, 5.222, 6.061, 7.217, 8.179, 9.512),
    24: (0.921, 1.886, 2.608, 3.331, 4.321, 5.074, 5.893, 7.02, 7.843, 9.177),
    32: (0.914, 1.881, 2.582, 3.29, 4.251, 4.992, 5.789, 6.876, 7.693, 8.777),
    48: (0.915, 1.872, 2.577, 3.269, 4.214, 4.929, 5.693, 6.694, 7.554, 8.699),
    64: (0.912, 1.866, 2.563, 3.249, 4.177, 4.907, 5.624, 6.672, 7.463, 8.651),
    128: (0.826, 1.652, 2.215, 2.755, 3.442, 3.972, 4.5, 5.202, 5.769, 6.47),
    256: (0.768, 1.512, 2.007, 2.453, 3.027, 3.455, 3.816, 4.343, 4.779, 5.309),
    1024: (0.721, 1.389, 1.798, 2.176, 2.636, 2.963, 3.264, 3.616, 3.867, 4.12),
}
"""Number of blocks -> minus Student's statistic at LEVELS, of gamma distributed blocks, as
``python -m benchmarks.gate --quantiles`` prints it; beyond, they come down to the normal distribution's."""


def skewness(n: int) -> float:
    """Return the skewness that ``n`` blocks are taken to have."""
    return min(max(math.sqrt(n) / 2, LEAST_SKEWNESS), MOST_SKEWNESS)


@functools.lru_cache(maxsize=4096)
def skewed_quantile(level: float, n: int) -> float:
    """Return the standard errors from the mean of ``n`` skewed blocks to its upper bound."""
    normal = -float(special.ndtri(min(level, LEVELS[0])))
    known = [*((1 / math.sqrt(count), _at_level(line, level)) for count, line in QUANTILES.items()), (0.0, normal)]
    x, y = zip(*reversed(known), strict=True)
    return float(np.exp(np.interp(1 / math.sqrt(n), x, np.log(y))))


def _at_level(quantiles: tuple[float, ...], level: float) -> float:
    """Interpolate on logarithmic scales; below the last level, follow the last line."""
    x, y = np.log(LEVELS), np.log(quantiles)
    wanted = math.log(min(level, LEVELS[0]))
    if wanted < x[-1]:
        return float(np.exp(y[-1] + (wanted - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])))
    return float(np.exp(np.interp(-wanted, -x, y)))


@functools.lru_cache(maxsize=4096)
def _students(level: float, n: int) -> float:
    return -float(special.stdtrit(n - 1, level))


def mean_bounds(mean: float, error: float, n: int, level: float) -> tuple[float, float]:
    """Return a lower and an upper bound of the mean of ``n`` blocks with the standard error ``error``."""
    return mean - _students(level, n) * error, mean + skewed_quantile(level, n) * error


def share_bounds(share: float, trials: float, level: float) -> tuple[float, float]:
    """Return Clopper and Pearson's bounds of a share; ``trials`` are independent items, not always a whole number."""
    successes = share * trials
    low = float(special.betaincinv(successes, trials - successes + 1, level)) if successes > 0 else 0.0
    high = float(special.betaincinv(successes + 1, trials - successes, 1 - level)) if successes < trials else 1.0
    return low, high


def difference_bounds(lost: float, won: float, trials: float, level: float) -> tuple[float, float]:
    """Return bounds of ``lost - won``, shares of the same items: Clopper and Pearson's of both, joined.

    The distance of each bound is the root of the sum of the squares of both shares' (Donner and Zou, Statistical
    Methods in Medical Research 2012 21:347). The two exclude each other, so that their covariance is negative, and is
    added.
    """
    (lost_low, lost_high), (won_low, won_high) = (share_bounds(share, trials, level) for share in (lost, won))
    correlation = math.sqrt(lost * won / ((1 - lost) * (1 - won))) if lost < 1 and won < 1 else 1.0

    def distance(first: float, second: float) -> float:
        return math.sqrt(first**2 + second**2 + 2 * correlation * first * second)

    difference = lost - won
    return (
        difference - distance(lost - lost_low, won_high - won),
        difference + distance(lost_high - lost, won - won_low),
    )


def windows_needed(mean: float, error: float, n: int, limit: float, level: float, power: float = POWER) -> int | None:
    """Return the windows with which a fresh measurement decides whether the mean is below ``limit``; None: too many.

    ``error`` is the standard error of the ``mean`` of the ``n`` windows that were measured. The fresh mean of N windows
    strays from this one by both errors, and N is the least for which one of its bounds passes the limit with
    probability ``power``.
    """
    spread = error * math.sqrt(n)
    if spread <= 0:
        return None if mean == limit else n

    def decided(count: int) -> float:
        fresh = spread / math.sqrt(count)
        high, low = skewed_quantile(level, count), _students(level, count)
        inside = (limit - mean - high * fresh) / math.hypot(error, fresh * _bound_spread(high, count))
        outside = (mean - limit - low * fresh) / math.hypot(error, fresh * _bound_spread(-low, count))
        return float(special.ndtr(inside) + special.ndtr(outside))

    return _least(decided, power)


def windows_to_confirm(mean: float, spread: float, limit: float, level: float, power: float = POWER) -> int | None:
    """Return the windows with which a variant whose true mean is ``mean`` gets an upper bound below ``limit``.

    ``spread`` is the standard deviation over windows. To size a confirmation, ``mean`` is ``limit / 1.5``.
    """
    if mean >= limit:
        return None
    normal = float(special.ndtri(power))

    def decided(count: int) -> float:
        high = skewed_quantile(level, count)
        return float((limit - mean) * math.sqrt(count) / spread >= high + normal * _bound_spread(high, count))

    return _least(decided, power) if spread > 0 else 2


def _bound_spread(quantile: float, n: int) -> float:
    """Return the standard deviation of mean + quantile * error over n blocks, in standard errors of the mean.

    By linearization: the variance of the spread is (kurtosis - 1) / 4, its covariance with the mean skewness / 2; of
    gamma distributed blocks the kurtosis is 3 + 1.5 skewness^2.
    """
    kurtosis = 3 + 1.5 * TYPICAL_SKEWNESS**2
    return math.sqrt(1 + quantile * TYPICAL_SKEWNESS / math.sqrt(n) + quantile**2 * (kurtosis - 1) / (4 * n))


@functools.lru_cache(maxsize=4096)
def items_needed(share: float, trials: float, limit: float, level: float, power: float = POWER) -> int | None:
    """Return the independent items with which a fresh measurement decides about a share; None: too many.

    The true share is not known: it is drawn from what ``trials`` items leave of it (Jeffreys' posterior), and the
    number of items is the least that decides in ``power`` of these cases.
    """
    share_at = (np.arange(64) + 0.5) / 64
    truths = special.betaincinv(share * trials + 0.5, trials - share * trials + 0.5, share_at)
    return _least(lambda count: _decided_share(truths, count, limit, level), power)


def items_to_confirm(share: float, limit: float, level: float, power: float = POWER) -> int | None:
    """Return the items with which a variant whose true share is ``share`` gets an upper bound below ``limit``."""
    return _least(lambda count: _inside_share(np.array([share]), count, limit, level), power) if share < limit else None


def _decided_share(truths: Floats, count: int, limit: float, level: float) -> float:
    fewest = _quantile_of_flips(1 - level, count, limit) + 1
    outside = float(special.bdtrc(fewest - 1, count, truths).mean()) if fewest <= count else 0.0
    return _inside_share(truths, count, limit, level) + outside


def _inside_share(truths: Floats, count: int, limit: float, level: float) -> float:
    """Return the probability that the upper bound of ``count`` items lies below the limit."""
    most = _quantile_of_flips(level, count, limit) - 1  # with so many flips, fewer are improbable at the limit
    return float(special.bdtr(most, count, truths).mean()) if most >= 0 else 0.0


def _quantile_of_flips(probability: float, count: int, share: float) -> int:
    """Return the least number of flips that is reached with a probability, of ``count`` items."""
    near = max(int(special.bdtrik(probability, count, share)) - 1, 0)
    while special.bdtr(near, count, share) < probability:
        near += 1
    return near


def _least(decided: Callable[[int], float], power: float) -> int | None:
    """Return the least number that decides with a probability; it grows with the number, but for small waves."""
    high = 4
    while decided(high) < power:
        high *= 2
        if high > MOST:
            return None
    low = high // 2 if high > 4 else 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) >= power else (middle, high)
    return high
