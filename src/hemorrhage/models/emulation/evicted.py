"""How many tokens of a prompt are evicted. Without torch, so that params.yaml is checked with it."""

from __future__ import annotations

import math


def scored_prompt(tokens: int) -> int:
    """Return how many tokens of a text that is scored are its prompt: the first half."""
    return tokens // 2


def evicted_tokens(tokens: int, ratio: float) -> int:
    """Return how many of ``tokens`` are evicted."""
    # A share such as 0.3 of 10 tokens is a hair below a whole number.
    return math.floor(tokens * ratio + 1e-9)
