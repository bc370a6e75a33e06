"""Steadiness of two models: coefficients of variation, and Brown and Forsythe's test by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.report.sections.decoding import answer
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_steadiness_compares_coefficients_of_variation() -> None:
    generator = np.random.default_rng(3)
    skills, alike = np.linspace(0.2, 0.9, 8), np.full(8, 0.6)
    difficulty = generator.random((200, 1))
    wild, steady = (difficulty < skills).astype(float), (difficulty < alike).astype(float)
    found = stability.compare(wild, steady, "recall", SPEC)
    assert found is not None
    accuracies = wild.mean(axis=0)
    assert found.first == pytest.approx(accuracies.std() / accuracies.mean())
    assert found.second == 0
    assert found.verdict == "steadier"
    assert answer(found).startswith("Yes: ")
    assert found.brown_forsythe == pytest.approx(
        stats.f_oneway(
            *(abs(one - np.median(one)) for one in (wild.mean(axis=0), steady.mean(axis=0))),
        ).pvalue
    )
    back = stability.compare(steady, wild, "recall", SPEC)
    assert back is not None
    assert back.verdict == "less steady"
    same = stability.compare(wild, wild, "recall", SPEC)
    assert same is not None
    assert same.verdict == "inconclusive"
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert stability.compare(np.zeros((9, 3)), wild[:9, :3], "recall", SPEC) is None
