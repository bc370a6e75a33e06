"""Variants as drafts: formulas of arXiv 2211.17192 against what they count."""

from __future__ import annotations

import numpy as np
import pytest

from hemorrhage.analyze.rows.drafts import SPEEDUP, best_gamma, kept, speedup, speedups
from hemorrhage.analyze.rows.schema import Statistic
from tests.analyze.report.examples import variant


def test_tokens_of_a_pass_are_those_of_a_simulation() -> None:
    """Drafted tokens count until the first that is refused, and the base's own comes behind them."""
    generator = np.random.default_rng(0)
    for acceptance, gamma in ((0.6, 3), (0.9, 5), (0.0, 4), (1.0, 4)):
        tokens = generator.random((20_000, gamma)) < acceptance
        until = np.where(tokens.all(axis=1), gamma, (~tokens).argmax(axis=1))
        assert kept(acceptance, gamma) == pytest.approx((until + 1).mean(), abs=0.05)


def test_speedups_are_the_papers() -> None:
    """By hand; and table 2 of the paper: T5-small for T5-XXL, acceptance 0.75, 5 to 7 tokens, cost about 0.02."""
    assert speedup(0.5, 2, 0.25) == pytest.approx((1 + 0.5 + 0.25) / 1.5)
    assert speedup(0.8, 0, 0.5) == 1
    assert 2.8 < speedup(0.75, 7, 0.02) < 3.4


def test_the_best_number_of_drafted_tokens_is_none_where_the_draft_is_not_cheaper() -> None:
    assert best_gamma(0.9, 1.2) == 0
    assert best_gamma(0.5, 0.9) == 0
    assert best_gamma(0.9, 0.1) == max(range(1, 17), key=lambda gamma: speedup(0.9, gamma, 0.1)) > 1


def test_a_row_has_the_interval_of_its_acceptance() -> None:
    known = Statistic(0.8, 0.7, 0.9, 16)
    (statistic,) = speedups(known, variant("rtn-4", size_ratio=0.25)).values()
    expected = [sum(a**i for i in range(5)) / 2 for a in (0.8, 0.7, 0.9)]
    assert [statistic.estimate, statistic.low, statistic.high] == pytest.approx(expected)
    assert list(speedups(known, variant("rtn-4"))) == [SPEEDUP]
    assert speedups(known, variant("base")) == {}
    assert speedups(Statistic.undefined("no prediction was looked at"), variant("rtn-4")) == {}
