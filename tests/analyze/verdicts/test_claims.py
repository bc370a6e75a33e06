"""The rules that judge the study's claims, on made-up evidence whose verdict is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, CurveEntry, Fit, Threshold
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Sibling, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.decoding import ALL_STRATEGIES, DECODE
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import claims
from hemorrhage.analyze.verdicts.claims import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED, Assessment, Evidence
from tests.analyze.curves import made
from tests.analyze.curves.made import located

CORPORA = ("prose", "code")
WINDOWS = 40
ERROR = 0.02


def row(variant: str, metric: str, dataset: str, value: float, low: float, high: float, **more: str) -> dict[str, Any]:
    nothing = {"p": 1.0, "q": 1.0, "mde": 0.0, "n": WINDOWS, "protocol": "", "status": "ok", "family": "", "method": ""}
    return {
        **nothing,
        "variant": variant,
        "metric": metric,
        "dataset": dataset,
        "estimate": value,
        "low": low,
        "high": high,
        **more,
    }


class Study:
    """Evidence, variant by variant."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.variants = {BASE: variant(BASE, BASE, BASE)}
        self.rows = [row(BASE, "mean_accuracy", "all tasks", 0.8, 0.7, 0.9)]
        self.replicates: dict[tuple[str, str], np.ndarray] = {}
        self.outputs: dict[str, Output] = {}
        self.decodes: dict[str, Output] = {}
        self.sibling: Sibling | None = None
        self.losses: dict[str, tuple[float, np.ndarray, int]] = {}

    def add(
        self, one: Variant, damage: float | dict[str, float], attention: float | None = None, lost: float | None = None
    ) -> None:
        self.variants[one.name] = one
        for corpus in CORPORA:
            value = damage[corpus] if isinstance(damage, dict) else damage
            self.replicates[one.name, corpus] = value + self.rng.normal(0, ERROR, 300)
            ends = (value - 2 * ERROR, value + 2 * ERROR)
            self.rows.append(row(one.name, "ln_perplexity_ratio[w128]", corpus, value, *ends))
        table = {}
        if attention is not None:
            windows = {"metric": "attention_js", "layer": 0, "head": 0, "window": range(4)}
            table["diagnostics.parquet"] = pd.DataFrame(
                {**windows, "value": attention * np.array([0.9, 1.0, 1.0, 1.1])}
            )
        self.outputs[one.name] = Output({}, table)
        if lost is not None:
            self.losses[one.name] = (lost, lost + self.rng.normal(0, 0.01, 300), 80)

    def evidence(self, thresholds: list[CurveEntry] | None = None, model: str = "m") -> Evidence:
        table = pd.DataFrame(self.rows)
        found = Inputs(
            {"model": {"name": model}}, self.variants, self.outputs, self.decodes, {}, {}, {}, sibling=self.sibling
        )
        results = Results(
            table,
            self.replicates,
            dict.fromkeys(CORPORA, WINDOWS),
            [],
            divergences={},
            task_losses=self.losses,
            trials=[],
        )
        spec = Spec(300, 0.95, 0, calibration=("prose",))
        return Evidence(found, results, Numbers(table), thresholds or [], spec, list(CORPORA))

    def verdict(self, key: str, thresholds: list[CurveEntry] | None = None, model: str = "m") -> str:
        return self.judge(key, thresholds, model).finding.verdict

    def judge(self, key: str, thresholds: list[CurveEntry] | None = None, model: str = "m") -> Assessment:
        return next(claim for claim in claims.judge(self.evidence(thresholds, model)) if claim.key == key)


CALIBRATED = ("wanda", "gptq")


def variant(name: str, family: str, method: str, severity: float = 0.0, size: float = 1.0, **settings: Any) -> Variant:
    manifest: CheckpointManifest = {
        "settings": settings,
        "size_ratio": size,
        "statistics": "of the base model" if method in CALIBRATED else "",
        "calibrated": method in CALIBRATED,
        "is_control": settings.get("order") == "random",
    }
    return Variant(name, method, family, method, "", name, "", severity, 0, BASE, manifest)


def entry(two_fold: Threshold, reach: float = 0.7, knee: Threshold | None = None) -> CurveEntry:
    none = Threshold(NO_CLIFF)
    thresholds = {"phase_point": none, "anchored_point": none, "knee": knee or none, "two_fold": two_fold}
    fits = {"kl_mean": Fit("linear", {}, [0.0, reach], [0.0, 0.0])}
    return made.entry(thresholds, family="depth_pruning", method="depth", axis="removed", sweep="shortgpt", fits=fits)


def doubling(estimate: float) -> Threshold:
    return located(estimate, estimate - 0.01, estimate + 0.01)


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
        ([0.69, 0.2], [4.0, 5.0], NOT_DECIDED),  # at the line
    ],
)
def test_three_bits(at_three: list[float], at_two: list[float], expected: str) -> None:
    study = Study()
    for bits, damages in ((3, at_three), (2, at_two)):
        for method, damage in zip(("rtn", "gptq"), damages, strict=True):
            study.add(variant(f"{method}-{bits}", "weight_quantization", method, bits, bits=bits), damage)
    assert study.verdict("three_bits") == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([doubling(0.48), doubling(0.52)], SUPPORTED),
        ([doubling(0.2), doubling(0.25)], CONTRADICTED),
        ([doubling(0.2), doubling(0.5)], NOT_DECIDED),
        ([Threshold(NO_CLIFF)], CONTRADICTED),  # measured up to 70 % without doubling
        ([Threshold(TOO_FEW)], NOT_MEASURED),
    ],
)
def test_a_collapse_at_a_share(answers: list[Threshold], expected: str) -> None:
    assert Study().verdict("structured_half", [entry(one) for one in answers]) == expected


def test_a_curve_that_stops_before_the_share_says_nothing() -> None:
    assert Study().verdict("structured_half", [entry(Threshold(NO_CLIFF), reach=0.3)]) == NOT_MEASURED


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
    assert found.finding.comparisons == 6
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
        study.add(
            variant(f"shortgpt-{share}", "depth_pruning", "depth", share, removed=share, order="influence"), whole
        )
        # A control, and another share.
        study.add(variant(f"random-{share}", "depth_pruning", "depth", share, removed=share, order="random"), 9.0)
    study.add(variant("shortgpt-0.1", "depth_pruning", "depth", 0.1, removed=0.1, order="influence"), 9.0)
    found = study.judge("structured_worse")
    assert found.finding.verdict == expected
    assert found.finding.comparisons == 4


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


@pytest.mark.parametrize(("moved", "expected"), [(0.3, SUPPORTED), (0.03, CONTRADICTED), (0.1, NOT_DECIDED)])
def test_attention_of_expanded_models(moved: float, expected: str) -> None:
    study = Study()
    study.add(variant("rtn-3", "weight_quantization", "rtn", 3, bits=3), 0.5, attention=0.1)
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, bits=2), 5.0, attention=0.6)
    study.add(variant("solar-0.25", "depth_expansion", "solar"), 0.6, attention=moved)
    study.add(variant("llama_pro-0.2", "depth_expansion", "llama_pro"), 0.0, attention=0.0)  # the control moves nothing
    found = study.judge("expansion_attention")
    assert found.finding.verdict == expected
    assert found.finding.comparisons == 1


def spread(study: Study, name: str, metric: str, value: float, low: float, high: float) -> None:
    study.rows.append(row(name, metric, "recall", value, low, high, family=DECODE, method=ALL_STRATEGIES))


@pytest.mark.parametrize(
    ("own", "other", "expected"), [(0.05, 0.3, SUPPORTED), (0.3, 0.05, CONTRADICTED), (0.2, 0.21, NOT_DECIDED)]
)
def test_aligned_and_unaligned(own: float, other: float, expected: str) -> None:
    study = Study()
    study.sibling = Sibling(variant("sibling_model", "", ""), False, Output({}, {}))
    spread(study, BASE, "spread_cv", own, own - 0.02, own + 0.02)
    spread(study, "sibling_model", "spread_cv", other, other - 0.02, other + 0.02)
    assert study.verdict("aligned_steady") == expected


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
    spread(study, BASE, "spread_over_max", value, value - 0.03, value + 0.03)
    assert study.verdict("wild_unaligned", model=model) == expected


def test_a_fifth_of_the_bytes() -> None:
    study = Study()
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, 0.19, bits=2), 0.1, lost=0.02)
    assert study.verdict("five_fold") == SUPPORTED
    study = Study()
    study.add(variant("rtn-2", "weight_quantization", "rtn", 2, 0.19, bits=2), 0.1, lost=0.3)
    assert study.verdict("five_fold") == CONTRADICTED


def test_transitions_are_counted() -> None:
    bent = entry(doubling(0.3), knee=Threshold(LOCATED))
    smooth, open_ = entry(doubling(0.3)), entry(doubling(0.3), knee=Threshold(TOO_FEW))
    assert Study().verdict("transition", [bent] * 4 + [smooth]) == SUPPORTED
    assert Study().verdict("transition", [smooth] * 5) == CONTRADICTED
    assert Study().verdict("transition", [bent, smooth, open_]) == NOT_DECIDED


def test_grades_say_why() -> None:
    study = Study()
    for share in (0.3, 0.5):
        study.add(variant(f"wanda-{share}", "unstructured_pruning", "wanda", share, sparsity=share), 0.4)
        study.add(variant(f"shortgpt-{share}", "depth_pruning", "depth", share, removed=share), 1.0)
    found = study.judge("structured_worse")
    assert (found.study_grade, found.grade) == ("medium", "medium")
    assert "one model" in found.grade_reason
    assert Study().judge("three_bits").study_grade == "high"
    few = study.judge("structured_half", [entry(doubling(0.5))])
    assert few.grade == "low"
    assert "1 comparison" in few.grade_reason
