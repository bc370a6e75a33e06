"""The decoding section's tables and sentences."""

from __future__ import annotations

import math
from typing import Any

import pytest
from benchmarks import study_tables

from hemorrhage.analyze.report.sections import decoding
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.stability import Stability
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts import signatures
from tests.analyze.report.examples import numbers, row

TEXTS: dict[str, Any] = {"dataset": "recall", "family": "decode"}
OVERALL: dict[str, Any] = {**TEXTS, "method": ALL_STRATEGIES}


@pytest.mark.parametrize(
    ("low", "high", "mde", "start"),
    [
        (-0.2, -0.1, 0.1, "Yes: "),
        (0.1, 0.2, 0.1, "No, the reverse: "),
        (-0.1, 0.1, 0.04, "Inconclusive: "),
        (-0.1, 0.1, 0.2, "No power: "),
    ],
)
def test_the_interval_answers_whether_the_aligned_model_is_more_stable(
    low: float, high: float, mde: float, start: str
) -> None:
    text = decoding.answer(Stability(0.3, 0.2, -0.1, low, high, mde, 40, 6))
    assert text.startswith(start)
    assert "over 6 strategies, without noise, is 20.0 % against 30.0 %, -10.0 points" in text


def test_spread_names_the_best_and_the_worst_strategy() -> None:
    (line,) = decoding.spread_rows(
        numbers(
            row("base", "accuracy", 0.5, **TEXTS, method="greedy"),
            row("base", "accuracy", 0.25, **TEXTS, method="top_p"),
            row("base", "spread", 0.5, 0.4, 0.6, **OVERALL),
            row("base", "spread_sd", 0.1, math.nan, math.nan, **OVERALL, p=0.001, q=0.012),
        )
    )
    assert (line.best, line.worst) == ("greedy 50\u00a0%", "top_p 25\u00a0%")
    assert line.spread == "50\u00a0% (40 to 60)"
    assert line.deviation == "10\u00a0% (too few right answers for an interval)"
    assert (line.p, line.change) == ("0.012", "–")


def test_significant_strategies_are_named() -> None:
    (line,) = decoding.interaction_rows(
        numbers(
            row("rtn-2", "accuracy_interaction", 0.1, **OVERALL, p=0.03),
            row("rtn-2", "accuracy_interaction", -0.2, -0.3, -0.1, **TEXTS, method="greedy", q=0.01),
            row("rtn-2", "accuracy_interaction", 0.2, -0.1, 0.3, **TEXTS, method="top_p", q=0.5),
        )
    )
    assert (line.metric, line.size, line.p) == ("Accuracy, recall", "10", "0.03")
    assert line.significant == "greedy -20 (-30 to -10)"
    (line,) = decoding.interaction_rows(
        numbers(
            row("rtn-2", "accuracy_interaction", 0.1, **OVERALL, p=0.5),
            row("rtn-2", "accuracy_interaction", 0.1, **TEXTS, method="greedy", q=0.5, mde=0.25),
        )
    )
    assert line.significant == "none; 25 would have been seen"


def test_rules_count_their_tests() -> None:
    rule = next(iter(signatures.RULES))
    verdicts = [
        signatures.RuleTest(rule, "base", "recall", "a test", verdict, "evidence")
        for verdict in (signatures.HOLDS, signatures.FAILS, signatures.UNTESTED, signatures.NO_POWER)
    ]
    first, second, *_ = decoding.rule_groups(verdicts)
    assert (first.count, len(first.rows)) == ("holds in 1 of the 2 tests here that tell; 1 without power", 4)
    assert second.count == "not told here"
    assert first.published


def test_the_section_of_a_study(study: Study) -> None:
    content = decoding.section(study)
    assert content is not None
    assert content.strategies == 11
    assert ("accuracy|recall", "Accuracy") in content.metric_options
    assert content.map_height == 90 + 20 * 11
    assert {row.variant for row in content.spread} == set(study.numbers.decoded_variants())
    assert {row.dataset for row in content.survival} == {"prose"}
    assert content.sibling == ""
    assert {row.dataset for row in content.answers} == {"prose", "recall"}
    assert {row.strategies for row in content.nearness} == {"12 texts: MAUVE is near 1 whatever they are, it takes 400"}
    assert {each.variant for each in content.beside} == {"gptq-4", "gptq-3", "wanda-0.5"}
    assert {"survival|prose", "decoding|base_nll|prose", "decoding-map|accuracy|recall"} < set(content.figures)
    # The other texts all reach their limit, which is then their length.
    assert content.cost_options == [("recall", "recall, Accuracy")]
    assert "answercost|recall" in content.figures


def test_tables_for_the_docs_have_the_pages_numbers(study: Study) -> None:
    lines = list(study_tables.decoded(study))
    shown = study.numbers.get("gptq-3", "accuracy", "recall", "greedy")
    assert shown is not None
    (accuracies, *_) = (line for line in lines if line.startswith("| greedy |"))
    assert f" {100 * shown.value:.3g} (" in accuracies
    assert "- **Decoding calibration: " in "\n".join(study_tables.mitigation(study))
