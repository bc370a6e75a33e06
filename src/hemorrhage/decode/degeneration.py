"""How much a generated text repeats itself, on lists of token ids.

distinct-n: Li et al. 2016 (arXiv 1510.03055), here of one text. rep-n: arXiv 2202.06417, there for n = 2, 3,
4. A text too short to hold an n-gram repeats none: distinct-n is 1 and rep-n is 0. How far texts are from
human ones: hemorrhage.decode.frontier.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

LOOP_TOKENS = 64
"""Length from which loops are judged: a sentence of twenty tokens, three times over, takes 60."""


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return all ``n``-grams of ``tokens`` in order, repeated ones too. Raises ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"n: {n}, at least 1 wanted")
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct_n(tokens: Sequence[int], n: int) -> float:
    """Return the distinct ``n``-grams over all ``n``-grams of a text."""
    grams = ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def rep_n(tokens: Sequence[int], n: int) -> float:
    """1 - distinct / all ``n``-grams of a text: 0 when none occurs twice."""
    return 1.0 - distinct_n(tokens, n)


def token_entropy(texts: Sequence[Sequence[int]]) -> float:
    """Return the entropy in nats of the distribution of tokens in ``texts`` together; NaN when they hold none."""
    counts = Counter(token for text in texts for token in text)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else math.nan


def loop_period(tokens: Sequence[int], repeats: int = 3, minimum: int = 8) -> int:
    """Return the period of the loop that a text ends in, in tokens; 0 when it does not end in one.

    A loop of period p is an end of at least ``repeats`` * p and at least ``minimum`` tokens in which each
    token equals the one p before it. The smallest such p counts. ``minimum`` keeps a row of dots from
    being a loop.
    """
    for period in range(1, len(tokens) // repeats + 1):
        length = max(repeats * period, minimum)
        if length <= len(tokens) and all(tokens[-i] == tokens[-i - period] for i in range(1, length - period + 1)):
            return period
    return 0


def loop_rate(texts: Sequence[Sequence[int]], repeats: int = 3, minimum: int = 8) -> float:
    """Return the share of ``texts`` that end in a loop; NaN when there are none."""
    if not texts:
        return math.nan
    return sum(loop_period(text, repeats, minimum) > 0 for text in texts) / len(texts)
