"""What a variant is worth as a draft of the base in speculative decoding (Leviathan et al. 2023, arXiv 2211.17192).

The base keeps a token that the variant drafts with probability a = sum over v of min(p(v), q(v)) on average (their
corollary 3.6). Drafting g tokens for each pass of the base makes (1 - a^(g+1)) / (1 - a) tokens (equation 1), and is
(1 - a^(g+1)) / ((1 - a) (g c + 1)) times as fast as the base alone (theorem 3.8), where c is the time of a draft's
token over that of a base's. Both hold where tokens are kept independently of one another, as the paper assumes.

Decoding one text reads every weight for a token, so c is the ratio of stored bytes: what an engine with kernels for
the variant's format can reach, and not what this machine measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.analyze.rows.schema import OK, Statistic

ACCEPTANCE = "acceptance"

GAMMA = 4
"""Tokens that are drafted at once, of the row that commits are compared by."""

SPEEDUP = f"draft_speedup{{gamma={GAMMA}}}"
"""Tokens per second with the variant as a draft, over the base's alone."""

MOST = 16
"""Most tokens that are drafted at once."""


def kept(acceptance: float, gamma: int) -> float:
    """Return the tokens that a pass of the base makes of ``gamma`` drafted ones, its own included."""
    return float(gamma + 1) if acceptance >= 1 else (1 - acceptance ** (gamma + 1)) / (1 - acceptance)


def speedup(acceptance: float, gamma: int, cost: float) -> float:
    """Return how many times as fast the base is with drafts that cost ``cost`` of its own tokens."""
    return kept(acceptance, gamma) / (gamma * cost + 1)


def best_gamma(acceptance: float, cost: float) -> int:
    """Return how many tokens to draft at once; 0 where no draft is worth it."""
    return max(range(MOST + 1), key=lambda gamma: speedup(acceptance, gamma, cost))


def speedups(acceptance: Statistic, variant: Variant) -> Mapping[str, Statistic]:
    """Return the row of the speedup of a variant with this acceptance; its interval is the acceptance's."""
    cost = float(variant.manifest.get("size_ratio", math.nan))
    if variant.name == BASE or acceptance.status != OK or not math.isfinite(cost):
        return {}
    values = [speedup(each, GAMMA, cost) for each in (acceptance.estimate, acceptance.low, acceptance.high)]
    return {SPEEDUP: Statistic(values[0], values[1], values[2], acceptance.n)}
