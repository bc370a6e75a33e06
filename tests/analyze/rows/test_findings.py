"""One chance of an error for all that is said of decoding: corrections by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from hemorrhage.analyze.rows import findings
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=100, confidence=0.95, seed=0)


def test_each_kind_has_an_equal_part_which_its_tests_share() -> None:
    assert len(findings.KINDS) == 8
    assert findings.allowed(SPEC) == pytest.approx(0.05 / 8)
    assert findings.allowed(SPEC, 3) == pytest.approx(0.05 / 24)
    assert findings.careful(SPEC, 3).confidence == pytest.approx(1 - 0.05 / 24)


def test_rows_are_corrected_within_their_kind_and_for_the_kinds() -> None:
    rows = pd.DataFrame(
        [
            ("a", "tokens_ratio", "all strategies", "prose", 0.001),
            ("b", "tokens_ratio", "all strategies", "prose", 0.004),
            ("a", "loop_rate_change", "all strategies", "prose", 0.5),
            ("a", "accuracy_interaction", "greedy", "sums", 0.0005),
            ("a", "accuracy_interaction", "top_p", "sums", 0.2),
            ("b", "accuracy_interaction", "greedy", "sums", 0.3),
            ("a", "accuracy_interaction", "all strategies", "sums", 0.01),
            ("a", "accuracy", "greedy", "sums", math.nan),
        ],
        columns=["variant", "metric", "method", "dataset", "p"],
    )
    q = findings.corrected(rows).tolist()
    # Holm: twice the smaller of two; two variants have a table of strategies.
    assert q[:6] == pytest.approx([8 * 0.002, 8 * 0.004, 1.0, 8 * 2 * 0.0005, 1.0, 1.0])
    assert all(math.isnan(each) for each in q[6:])
