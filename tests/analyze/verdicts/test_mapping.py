"""The map of modifications and patterns: nine effects, and the two comparisons between models."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.verdicts import mapping
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED
from tests.analyze.verdicts.made import Study, variant


def study_of(moved: float, grown: float) -> Study:
    study = Study()
    study.add(variant("rtn-3", "weight_quantization", "rtn", 3, bits=3), 0.5, attention=0.1, growth=0.05)
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, bits=2), 5.0, attention=0.6, growth=0.3)
    study.add(variant("solar-0.25", "depth_expansion", "solar"), 0.6, attention=moved, growth=grown)
    # Copies that add nothing are the base: their rounding noise is no effect.
    study.add(variant("llama_pro-0.2", "depth_expansion", "llama_pro"), 0.0, attention=2e-6, growth=3.0)
    return study


@pytest.mark.parametrize(("moved", "expected"), [(0.3, SUPPORTED), (0.03, CONTRADICTED), (0.1, NOT_DECIDED)])
def test_attention_of_expanded_models(moved: float, expected: str) -> None:
    found = mapping.attention(study_of(moved, 0.0).evidence())
    assert (found.verdict, found.comparisons) == (expected, 1)
    assert mapping.attention(Study().evidence()).verdict == NOT_MEASURED


@pytest.mark.parametrize(("grown", "expected"), [(0.0, SUPPORTED), (0.2, CONTRADICTED), (0.05, NOT_DECIDED)])
def test_growth_of_errors_in_compressed_models(grown: float, expected: str) -> None:
    found = mapping.cascade(study_of(0.1, grown).evidence())
    assert (found.verdict, found.comparisons) == (expected, 1)


def test_all_nine_effects_are_stated() -> None:
    effects = {(each.modification, each.pattern): each for each in mapping.effects(study_of(0.3, 0.02).evidence())}
    assert len(effects) == 9
    attention = effects[mapping.EXPANSION, mapping.ATTENTION]
    assert attention.models == 1
    assert attention.estimate == pytest.approx(0.3)
    assert attention.low is not None
    assert attention.high is not None
    assert attention.low < 0.3 < attention.high
    assert effects[mapping.COMPRESSION, mapping.CASCADE].estimate == pytest.approx(0.175)
    divergence = effects[mapping.COMPRESSION, mapping.DIVERGENCE]
    assert divergence.estimate == pytest.approx(2.75)
    assert effects[mapping.DECODING, mapping.ATTENTION].estimate == 0
    assert "no strategy changes a weight" in effects[mapping.DECODING, mapping.CASCADE].reason
    assert effects[mapping.DECODING, mapping.DIVERGENCE].reason == "the base model was not decoded"
    assert effects[mapping.EXPANSION, mapping.DIVERGENCE].as_json()["unit"]
