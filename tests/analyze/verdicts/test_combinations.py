"""Combinations of two kinds against one kind, on made-up variants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED
from tests.analyze.verdicts.made import Study, variant


def study_of(combined: float) -> Study:
    study = Study()
    study.add(variant("wanda-0.5", "unstructured_pruning", "wanda", 0.5, 0.6, sparsity=0.5), 0.4)
    study.add(variant("gptq-4", "weight_quantization", "gptq", 4, 0.3, bits=4, keep_zeros=False), 0.2)
    study.add(variant("gptq-3", "weight_quantization", "gptq", 3, 0.25, bits=3, keep_zeros=False), 0.5)
    # Another method is no part of it.
    study.add(variant("awq-3", "weight_quantization", "awq", 3, 0.26, bits=3), 0.01)
    both = variant("wanda_gptq-4", "weight_quantization", "gptq", 4, 0.27, bits=4, keep_zeros=True)
    study.add(replace(both, on="wanda-0.5"), combined)
    return study


@pytest.mark.parametrize(("combined", "expected"), [(0.7, SUPPORTED), (0.3, CONTRADICTED), (0.501, NOT_DECIDED)])
def test_one_kind_of_no_more_bytes(combined: float, expected: str) -> None:
    finding = study_of(combined).judge("one_kind_first").finding
    assert (finding.verdict, finding.comparisons) == (expected, 1)


@pytest.mark.parametrize(("combined", "expected"), [(0.7, SUPPORTED), (0.1, CONTRADICTED), (0.3, NOT_DECIDED)])
def test_a_combination_and_its_parts(combined: float, expected: str) -> None:
    finding = study_of(combined).judge("parts_first").finding
    assert (finding.verdict, finding.comparisons) == (expected, 2)


def test_a_part_that_changes_nothing_and_what_is_of_one_kind_say_nothing() -> None:
    study = Study()
    study.add(variant("wanda-0.5", "unstructured_pruning", "wanda", 0.5, 0.6, sparsity=0.5), 0.4)
    study.add(variant("gptq-8", "weight_quantization", "gptq", 8, 0.5, bits=8), 0.0)
    both = variant("wanda_gptq-8", "weight_quantization", "gptq", 8, 0.4, bits=8)
    study.add(replace(both, on="wanda-0.5"), 0.9)
    assert study.judge("parts_first").finding.comparisons == 1
    assert study.verdict("one_kind_first") == NOT_MEASURED  # nothing alone is so small
    study = Study()
    study.add(variant("wanda-0.5", "unstructured_pruning", "wanda", 0.5, 0.6, sparsity=0.5), 0.4)
    again = variant("sparsegpt-0.7", "unstructured_pruning", "sparsegpt", 0.7, 0.4, sparsity=0.7)
    study.add(replace(again, on="wanda-0.5"), 0.9)
    assert study.verdict("parts_first") == NOT_MEASURED
