"""Outputs that could not be made."""

from __future__ import annotations

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.report.sections.failures import Failure, count_variants, failures
from tests.analyze.report.examples import inputs, variant

STUDY = inputs(
    variant("rtn-4"),
    variant("rtn-2", failure="not positive definite"),
    decodes={"rtn-4": Output({"failure": "out of memory"}, {}), "base": Output({}, {})},
)


def test_failures_have_their_step_and_reason() -> None:
    assert failures(STUDY) == [
        Failure("rtn-2", "compress", "not positive definite"),
        Failure("rtn-4", "decode", "out of memory"),
    ]


def test_what_was_not_evaluated_is_a_failure_of_evaluation() -> None:
    assert failures(inputs(variant("rtn-4"), evaluated=False)) == [Failure("rtn-4", "evaluate", "not evaluated")]


def test_counts() -> None:
    assert count_variants(STUDY) == (2, 1)
