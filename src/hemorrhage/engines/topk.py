"""KL(base || served) where the server gives only the top k log-probabilities: an interval, never a point.

Known at a position: all of the base's probabilities p, and the served ones q of a few tokens S. Of the others T, n in
number, three facts are known: they sum to the missing mass R = 1 - sum(q over S); none is above the cap c, the k-th
served probability; and none is below the floor f, where the server's model has one (``logit_range``). The divergence is

    sum over S of p log(p / q)  +  sum over T of p log p  -  sum over T of p log q

and only the last sum is open. Over all q that agree with the facts:

- it is largest, the divergence smallest, where q is proportional to p as far as the cap allows: q = min(c, λp), with λ
  so that they sum to R. Without the cap this is the log sum inequality, P log(P / R) with P = sum(p over T).
- it is smallest, the divergence largest, at a corner, as it is concave: all but one of T are at f or at c. The numbers
  at a corner are given by R; the least likely of p take the largest of them (rearrangement). Without a floor q may be 0
  somewhere and the divergence has no upper bound: infinity.

Both are reached, so neither can be improved without another fact. A served log-probability is known up to
``tolerance``, which widens the interval.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOAT32 = 1e-5
"""Error of a log-probability that was computed and written in float32."""


class Interval(NamedTuple):
    """A number that is at least ``low`` and at most ``high``, which may be infinite; both in nats."""

    low: float
    high: float


def kl_interval(
    base: Floats, ids: Ints, logprobs: Floats, cap: float, floor: float = -np.inf, tolerance: float = FLOAT32
) -> Interval:
    """Bound KL(base || served) at one position.

    ``base``: log-probabilities of the whole vocabulary ``[v]``. ``ids`` and ``logprobs``: the served ones ``[k]``, each
    token once. ``cap`` and ``floor``: log-probabilities that no other token is above or below.
    """
    p = np.exp(base)
    known = float(p[ids] @ (base[ids] - logprobs))
    rest = np.ones(len(base), dtype=bool)
    rest[ids] = False
    tail = np.sort(p[rest])
    slack = float(p[ids].sum()) * tolerance
    served = float(np.exp(logprobs).sum())
    if not len(tail):
        return Interval(max(known - slack, 0.0), known + slack)
    entropy = float(tail @ np.log(np.maximum(tail, np.finfo(float).tiny)))
    top = float(np.exp(cap + tolerance))
    # The fewer the missing mass, the larger the divergence: each end has the mass that the tolerance allows it.
    most = min(max(1 - served * np.exp(-tolerance), 0.0), len(tail) * top)
    least = max(1 - served * np.exp(tolerance), 0.0)
    low = known - slack + entropy - _largest(tail, most, top)
    high = known + slack + entropy - _smallest(tail, least, top, float(np.exp(floor - tolerance)))
    return Interval(max(low, 0.0), high)


def _largest(tail: Floats, mass: float, cap: float) -> float:
    """Return the largest sum of p log q, q at most ``cap`` and in sum ``mass``; ``tail``, p, ascends."""
    if mass <= 0:
        return -np.inf if tail[-1] > 0 else 0.0
    below = np.cumsum(tail)
    # The most likely reach the cap first: the last m are at it, the others share the rest. The smallest m that fits.
    capped = np.arange(len(tail))
    left, last = mass - capped * cap, len(tail) - 1 - capped
    m = int(np.argmax(left * tail[last] <= cap * below[last]))
    scale = left[m] / below[last[m]] if below[last[m]] > 0 else 0.0
    return _sum(tail, np.minimum(scale * tail, cap))


def _smallest(tail: Floats, mass: float, cap: float, floor: float) -> float:
    """Return the smallest sum of p log q, q from ``floor`` to ``cap`` and in sum ``mass``; ``tail``, p, ascends."""
    if cap <= floor:
        return _sum(tail, np.full(len(tail), floor))
    count = int(np.clip((mass - len(tail) * floor) / (cap - floor), 0, len(tail)))
    q = np.full(len(tail), floor)
    q[:count] = cap
    if count < len(tail):
        left = mass - count * cap - (len(tail) - count) * floor
        q[count] = floor + max(left, 0.0)
    return _sum(tail, q)


def _sum(p: Floats, q: Floats) -> float:
    """Return the sum of p log q; a p of 0 adds nothing."""
    positive = p > 0
    with np.errstate(divide="ignore"):
        return float(p[positive] @ np.log(q[positive]))


def mean_interval(intervals: list[Interval]) -> Interval:
    """Return the interval of the mean over positions. Raises ValueError where there is none."""
    if not intervals:
        raise ValueError("no position was served")
    low, high = np.mean(np.array(intervals), axis=0)
    return Interval(float(low), float(high))


def logit_range(head: Floats, gain: Floats | None = None, bias: Floats | None = None) -> float:
    """Return how far apart two logits of a model can be at most: head ``[v, d]`` over a norm with ``gain`` ``[d]``.

    An RMS or layer norm gives vectors of at most sqrt(d) before its gain, so that by Cauchy and Schwarz two logits
    differ by at most 2 sqrt(d) times the largest distance of a row from the mean row. This holds whatever the layers
    below compute: for every quantization that leaves norm and head as they are. ``bias``: of the head, ``[v]``.
    """
    rows = head * gain if gain is not None else head
    spread = float(np.linalg.norm(rows - rows.mean(0), axis=1).max())
    shift = float(np.ptp(bias)) if bias is not None else 0.0
    return 2 * float(np.sqrt(rows.shape[1])) * spread + shift
