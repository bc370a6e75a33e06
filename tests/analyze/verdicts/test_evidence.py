"""Evidence: damage over corpora, and paired comparisons."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.verdicts.evidence import (
    CONTRADICTED,
    NOT_DECIDED,
    NOT_MEASURED,
    SUPPORTED,
    Pair,
    compare,
    decide,
    finite,
    methods_of,
)
from tests.analyze.verdicts.made import Study, variant


def test_damage_is_the_mean_over_corpora_and_its_interval_that_of_the_mean() -> None:
    study = Study()
    study.add(variant("rtn-3", "weight_quantization", "rtn", 3, bits=3), {"prose": 0.2, "code": 0.4})
    evidence = study.evidence()
    damage, prose = evidence.damage("rtn-3"), evidence.damage("rtn-3", ["prose"])
    assert damage is not None
    assert prose is not None
    assert damage.value == pytest.approx(0.3)
    assert damage.low < 0.3 < damage.high
    assert damage.high - damage.low < prose.high - prose.low
    assert evidence.damage("unknown") is None


def test_a_pair_counts_once_whatever_the_corpora() -> None:
    study = Study()
    first, second = (variant(name, "weight_quantization", "rtn", 3, bits=3) for name in ("a", "b"))
    study.add(first, 0.5)
    study.add(second, 0.2)
    found = compare(study.evidence(), [Pair(first, second)], "pairs")
    assert (found.verdict, found.comparisons) == (SUPPORTED, 1)
    assert found.estimate == pytest.approx(0.3)
    assert compare(study.evidence(), [Pair(second, first)], "pairs").verdict == CONTRADICTED
    assert compare(study.evidence(), [], "pairs").verdict == NOT_MEASURED
    assert methods_of([first, second]) == ["rtn"]


def test_a_verdict_needs_the_interval_and_the_comparisons() -> None:
    assert decide(0.1, 0.2, 4, 5) == SUPPORTED
    assert decide(0.1, 0.2, 3, 5) == NOT_DECIDED
    assert decide(-0.1, 0.2, 5, 5) == NOT_DECIDED
    assert decide(-0.2, -0.1, 1, 5) == CONTRADICTED
    assert finite(float("inf")) is None
