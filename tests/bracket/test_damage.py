"""Shares of the limits that damage on a few windows uses up."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.bracket.content import INSIDE, OUTSIDE, UNDECIDED
from hemorrhage.bracket.damage import Used, answer, used_shares, worst


def tokens(kl: list[float], loss: list[float], corpus: str = "prose") -> pd.DataFrame:
    """Two tokens in each window, with these means."""
    rows = [
        {"corpus": corpus, "window": window, "kl": kl[window] + sign * 0.01, "nll": loss[window], "base_nll": 0.0}
        for window in range(len(kl))
        for sign in (-1, 1)
    ]
    return pd.DataFrame(rows)


def test_the_bounds_of_a_mean_are_students() -> None:
    kl = [0.1, 0.2, 0.3, 0.2]
    (share,) = used_shares(tokens(kl, [0.0] * 4), {"kl": 0.4})
    # Student's 95 % quantile of 3 degrees of freedom, from a table.
    half = 2.353363 * np.std(kl, ddof=1) / 2
    assert share.estimate == pytest.approx(0.5)
    assert share.high == pytest.approx(0.5 * math.exp(half / 0.2), rel=1e-5)
    assert share.low == pytest.approx(0.5 / math.exp(half / 0.2), rel=1e-5)


def test_every_limit_and_every_corpus_counts() -> None:
    table = pd.concat([tokens([0.1, 0.1], [0.0, 0.0]), tokens([0.3, 0.3], [0.1, 0.1], "code")])
    shares = used_shares(table, {"kl": 0.2, "perplexity": math.e})
    assert [round(share.estimate, 6) for share in shares] == [0.5, 0.0, 1.5, 0.1]
    assert worst(shares).estimate == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([Used(0.5, 0.4, 0.6), Used(0.1, 0.0, 0.2)], INSIDE),
        ([Used(0.5, 0.4, 0.6), Used(0.9, 0.5, 1.4)], UNDECIDED),
        ([Used(0.9, 0.5, 1.4), Used(2.0, 1.1, 4.0)], OUTSIDE),
    ],
)
def test_a_variant_is_inside_where_all_bounds_are(shares: list[Used], said: str) -> None:
    assert answer(shares) == said
