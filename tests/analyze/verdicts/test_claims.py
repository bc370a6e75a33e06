"""The rules that judge the study's claims, on made-up evidence whose verdict is known."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, CurveEntry, Fit, Threshold
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.rows.decoding import DECODE
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.stability import Stability
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import claims
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED, Evidence
from tests.analyze.curves.made import entry as made_entry
from tests.analyze.verdicts.made import Study, row, variant


def entry(knee: Threshold, corpus: str = "prose", sweep: str = "shortgpt") -> CurveEntry:
    none = Threshold(NO_CLIFF)
    thresholds = {"phase_point": none, "anchored_point": none, "knee": knee, "two_fold": none}
    fits = {"kl_mean": Fit("linear", {}, [0.0, 0.7], [0.0, 0.0])}
    return made_entry(
        thresholds, family="depth_pruning", method="depth", axis="removed", sweep=sweep, corpus=corpus, fits=fits
    )


def test_nothing_measured_decides_nothing() -> None:
    for one in claims.judge(Study().evidence()):
        assert one.finding.verdict == NOT_MEASURED
        assert one.grade == "none"
        assert one.finding.measured
    empty = Evidence(
        Study().evidence().inputs, Study().evidence().results, Study().evidence().numbers, [], Spec(9, 0.9, 0)
    )
    assert {one.finding.verdict for one in claims.judge(empty)} == {NOT_MEASURED}


@pytest.mark.parametrize(
    ("at_three", "at_two", "expected"),
    [
        ([0.2, 0.3], [4.0, 5.0], SUPPORTED),
        ([1.5, 2.0], [4.0, 5.0], CONTRADICTED),  # gone at 3 bits already
        ([0.1, 0.1], [0.2, 0.3], CONTRADICTED),  # still there at 2
        ([0.2, 1.5], [4.0, 5.0], NOT_DECIDED),  # one method, not the other
        ([0.69, 0.2], [4.0, 5.0], NOT_DECIDED),  # at the line: one method is too few
    ],
)
def test_three_bits(at_three: list[float], at_two: list[float], expected: str) -> None:
    study = Study()
    for bits, damages in ((3, at_three), (2, at_two)):
        for method, damage in zip(("rtn", "gptq"), damages, strict=True):
            study.add(variant(f"{method}-{bits}", "weight_quantization", method, bits, bits=bits), damage)
    assert study.verdict("three_bits") == expected


def test_structured_pruning_needs_two_methods_and_a_collapse_beyond_the_share_says_nothing() -> None:
    study = Study()
    study.add(variant("depth-0.5", "depth_pruning", "depth", 0.5, removed=0.5), 2.0)
    assert study.verdict("structured_half") == NOT_DECIDED
    assert "2 are needed" in study.judge("structured_half").finding.measured
    study.add(variant("slice-0.3", "structured_pruning", "slicegpt", 0.3, removed=0.3), 1.0)
    assert study.verdict("structured_half") == SUPPORTED

    study = Study()
    for method in ("wanda", "sparsegpt"):
        for share, damage in ((0.6, 0.4), (0.72, 3.0)):
            study.add(variant(f"{method}-{share}", "unstructured_pruning", method, share, sparsity=share), damage)
            study.variants[f"{method}-{share}"].manifest["calibrated"] = True
    assert study.verdict("unstructured") == SUPPORTED


@pytest.mark.parametrize(
    ("pruned", "expected"),
    [([1.0, 2.0, 1.5], SUPPORTED), ([0.01, 0.02, 0.01], CONTRADICTED), ([0.15, 2.0, 0.02], NOT_DECIDED)],
)
def test_quantization_against_pruning_of_no_fewer_bytes(pruned: list[float], expected: str) -> None:
    study = Study()
    study.add(variant("rtn-4", "weight_quantization", "rtn", 4, 0.4, bits=4), 0.15)
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, 0.2, bits=2), 9.0)
    for place, damage in enumerate(pruned):
        study.add(
            variant(f"wanda-{place}", "unstructured_pruning", "wanda", 0.5, 0.6, sparsity=0.5 + place / 10), damage
        )
    # Smaller than every quantized variant: it has nothing to be compared with.
    study.add(variant("wanda-0.9", "unstructured_pruning", "wanda", 0.9, 0.1, sparsity=0.9), 5.0)
    found = study.judge("quantization_first")
    assert found.finding.verdict == expected
    assert found.finding.comparisons == 3  # a variant counts once, on however many corpora
    low, estimate, high = found.finding.low, found.finding.estimate, found.finding.high
    assert low is not None
    assert estimate is not None
    assert high is not None
    assert low <= estimate <= high


@pytest.mark.parametrize(("whole", "expected"), [(1.0, SUPPORTED), (0.1, CONTRADICTED), (0.41, NOT_DECIDED)])
def test_structured_against_unstructured_of_the_same_share(whole: float, expected: str) -> None:
    study = Study()
    for share in (0.3, 0.5):
        study.add(variant(f"wanda-{share}", "unstructured_pruning", "wanda", share, sparsity=share), 0.4)
        study.add(variant(f"shortgpt-{share}", "depth_pruning", "depth", share, removed=share), whole)
        # A control, and another share.
        study.add(variant(f"random-{share}", "depth_pruning", "depth", share, removed=share, order="random"), 9.0)
    study.add(variant("shortgpt-0.1", "depth_pruning", "depth", 0.1, removed=0.1, order="influence"), 9.0)
    found = study.judge("structured_worse")
    assert found.finding.verdict == NOT_DECIDED  # one structured method is a verdict on that method
    assert found.finding.comparisons == 2
    study.add(variant("slicegpt-0.3", "structured_pruning", "slicegpt", 0.3, removed=0.3), whole)
    assert study.verdict("structured_worse") == expected


def test_patterns_against_free_masks() -> None:
    study = Study()
    study.add(variant("wanda-0.5", "unstructured_pruning", "wanda", 0.5, sparsity=0.5), 0.2)
    study.add(variant("wanda-2of4", "unstructured_pruning", "wanda", 0.5, sparsity="2:4"), 0.5)
    assert study.verdict("patterns_worse") == SUPPORTED


@pytest.mark.parametrize(("off", "expected"), [(0.9, SUPPORTED), (0.3, CONTRADICTED), (0.6, NOT_DECIDED)])
def test_calibration_off_its_domain(off: float, expected: str) -> None:
    study = Study()
    for bits in (4, 3):
        # Code is twice as fragile for every method.
        study.add(variant(f"rtn-{bits}", "weight_quantization", "rtn", bits, bits=bits), {"prose": 0.4, "code": 0.8})
        study.add(variant(f"gptq-{bits}", "weight_quantization", "gptq", bits, bits=bits), {"prose": 0.3, "code": off})
    assert study.verdict("calibration_mismatch") == expected


@pytest.mark.parametrize(("swapped", "expected"), [(0.6, SUPPORTED), (0.15, CONTRADICTED), (0.305, NOT_DECIDED)])
def test_swapped_calibration_sets(swapped: float, expected: str) -> None:
    study = Study()
    assert study.verdict("calibration_transfer") == NOT_MEASURED
    for own, other in (("prose", "code"), ("code", "prose")):
        one = variant(f"gptq-{own}", "weight_quantization", "gptq", 3, bits=3, calibrated_on=own)
        study.add(one, {own: 0.3, other: swapped})
    found = study.judge("calibration_transfer").finding
    assert (found.verdict, found.comparisons) == (expected, 1)


@pytest.mark.parametrize(("lost", "expected"), [(0.17, SUPPORTED), (0.4, CONTRADICTED), (0.25, NOT_DECIDED)])
def test_what_pruning_loses_at_equal_bytes(lost: float, expected: str) -> None:
    study = Study()
    study.add(variant("wanda-0.5", "unstructured_pruning", "wanda", 0.5, 0.4, sparsity=0.5), 0.5, lost=lost)
    assert study.verdict("pruning_loses") == NOT_MEASURED
    study.add(variant("rtn-4", "weight_quantization", "rtn", 4, 0.38, bits=4), 0.1, lost=0.02)
    assert study.verdict("pruning_loses") == expected
    study.add(variant("rtn-3", "weight_quantization", "rtn", 3, 0.2, bits=3), 0.1, lost=0.02)
    assert study.verdict("pruning_loses") == NOT_MEASURED  # no pruned variant is so small


def spread(study: Study, name: str, metric: str, value: float, low: float, high: float) -> None:
    study.rows.append(row(name, metric, "recall", value, low, high, family=DECODE, method=ALL_STRATEGIES))


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(-0.3, -0.1)], SUPPORTED),
        ([(0.1, 0.3)], CONTRADICTED),
        ([(-0.3, 0.1)], NOT_DECIDED),
        ([(-0.3, -0.1), (0.1, 0.3)], NOT_DECIDED),
    ],
)
def test_aligned_and_unaligned(intervals: list[tuple[float, float]], expected: str) -> None:
    compared = {
        f"task {place}": Stability(0.3, 0.3 + low, (low + high) / 2, low, high, 0.1, 24, 6)
        for place, (low, high) in enumerate(intervals)
    }
    assert claims.steadier(compared).verdict == expected
    assert claims.steadier({}).verdict == NOT_MEASURED


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        ("smollm2-135m-instruct", 0.05, SUPPORTED),
        ("smollm2-135m-instruct", 0.4, CONTRADICTED),
        ("stories", 0.4, SUPPORTED),
        ("stories", 0.15, NOT_DECIDED),
    ],
)
def test_a_wide_spread_and_what_the_model_is(model: str, value: float, expected: str) -> None:
    study = Study()
    spread(study, BASE, "spread", value, value - 0.03, value + 0.03)
    assert study.verdict("wild_unaligned", model=model) == expected


def test_a_fifth_of_the_bytes() -> None:
    study = Study()
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, 0.19, bits=2), 0.1, lost=0.02)
    assert study.verdict("five_fold") == SUPPORTED
    study = Study()
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, 0.19, bits=2), 0.1, lost=0.3)
    assert study.verdict("five_fold") == CONTRADICTED


def test_transitions_are_counted_once_for_all_corpora() -> None:
    bent, smooth, open_ = Threshold(LOCATED), Threshold(NO_CLIFF), Threshold(TOO_FEW)
    curves = {name: [entry(knee, sweep=name)] for name, knee in zip("abcde", [bent] * 4 + [smooth], strict=True)}
    assert Study().verdict("transition", [each for found in curves.values() for each in found]) == SUPPORTED
    assert Study().verdict("transition", [entry(smooth, sweep=name) for name in "abcde"]) == CONTRADICTED
    assert Study().verdict("transition", [entry(one, sweep=str(one)) for one in (bent, smooth, open_)]) == NOT_DECIDED
    both = [entry(bent, sweep="a"), entry(smooth, "code", sweep="a")]
    found = Study().judge("transition", both).finding
    assert (found.verdict, found.comparisons) == (NOT_DECIDED, 1)


def test_grades_say_why() -> None:
    study = Study()
    for share in (0.3, 0.5):
        study.add(variant(f"wanda-{share}", "unstructured_pruning", "wanda", share, sparsity=share), 0.4)
        study.add(variant(f"shortgpt-{share}", "depth_pruning", "depth", share, removed=share), 1.0)
        study.add(variant(f"slice-{share}", "structured_pruning", "slicegpt", share, removed=share), 1.0)
    found = study.judge("structured_worse")
    assert (found.study_grade, found.grade) == ("medium", "medium")
    assert "one model" in found.grade_reason
    assert "says nothing of others" in found.generality
    assert found.on_its_source.startswith("supported")
    assert Study().judge("three_bits").study_grade == "high"
    few = study.judge("structured_half")
    assert few.grade == "low"
    assert "2 comparisons" in few.grade_reason


def test_the_base_model_is_described_for_a_table_over_studies() -> None:
    described = claims.model_of(Study().evidence(), "m")
    assert described == {"name": "m", "family": None, "parameters": None, "calibration": ["prose"]}
    content = claims.as_json(claims.judge(Study().evidence()), [], [], described)
    assert set(content) == {"model", "claims", "mapping", "doubled"}
