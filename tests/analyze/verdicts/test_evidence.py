"""Evidence: damage over corpora, and paired comparisons."""

from __future__ import annotations

import numpy as np
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
from tests.analyze.verdicts.made import CORPORA, ERROR, Study, variant


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


def test_claims_are_about_methods_so_that_damage_moves_with_the_calibration_draw() -> None:
    study = Study()
    study.add(variant("gptq-3", "weight_quantization", "gptq", 3, bits=3), 0.5)
    study.add(variant("rtn-3", "weight_quantization", "rtn", 3, bits=3), 0.5)
    evidence = study.evidence()
    both, prose, code = (evidence.damage("gptq-3", corpora) for corpora in (CORPORA, ["prose"], ["code"]))
    plain = evidence.damage("rtn-3")
    assert both is not None
    assert prose is not None
    assert code is not None
    assert plain is not None
    # 10 % of 0.5, besides ERROR of each corpus.
    assert both.replicates.std() == pytest.approx((0.05**2 + ERROR**2 / 2) ** 0.5, rel=0.15)
    assert plain.replicates.std() == pytest.approx((ERROR**2 / 2) ** 0.5, rel=0.15)
    # A draw moves all corpora alike, so that it makes no difference between them.
    assert np.log(prose.replicates / code.replicates).std() == pytest.approx(2**0.5 * ERROR / 0.5, rel=0.15)


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
