"""Why a perplexity is above twice the base's, on made-up variants whose cause is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hemorrhage.analyze.inputs import Variant
from hemorrhage.analyze.verdicts import causes
from hemorrhage.analyze.verdicts.causes import CALIBRATION, NEITHER, OPEN, STRENGTH
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED
from tests.analyze.verdicts.made import Study, variant


def pruned(name: str, method: str, share: float, **more: Any) -> Variant:
    return replace(variant(name, "unstructured_pruning", method, share, sparsity=share, **more), axis="sparsity")


def wanda(share: float, **more: Any) -> Variant:
    return pruned(f"wanda-{share}", "wanda", share, **more)


def magnitude(share: float) -> Variant:
    return pruned(f"magnitude-{share}", "magnitude", share)


def cause_of(study: Study, name: str) -> tuple[str, str]:
    (found,) = [cause for cause in causes.causes(study.evidence()) if cause.variant == name]
    return found.cause, found.evidence


def test_the_strength_is_the_cause_where_less_is_fine_and_calibration_helps() -> None:
    study = Study()
    study.add(wanda(0.5), 0.3)
    study.add(wanda(0.7), 2.0)
    study.add(magnitude(0.7), 3.0)
    cause, why = cause_of(study, "wanda-0.7")
    assert cause == STRENGTH
    assert "magnitude-0.7 (20.1 times) without calibration is damaged more" in why
    assert "wanda-0.5 (1.35 times) is below twice" in why
    # Of the method that reads no text nothing smaller was run.
    assert cause_of(study, "magnitude-0.7")[0] == OPEN


@pytest.mark.parametrize("rescued", ["plain", "other set", "shuffled"])
def test_the_calibration_is_the_cause_where_the_same_strength_is_fine_without_it(rescued: str) -> None:
    study = Study()
    study.add(wanda(0.5, calibrated_on="code"), 0.1)
    study.add(wanda(0.6, calibrated_on="code"), 1.5)
    arms = {
        "plain": magnitude(0.6),
        "other set": replace(wanda(0.6, calibrated_on="prose"), name="wanda_prose-0.6", sweep="wanda_prose"),
        "shuffled": pruned("wanda_shuffled-0.6", "wanda", 0.6, shuffled=True),
    }
    study.add(arms[rescued], 0.4)
    cause, why = cause_of(study, "wanda-0.6")
    assert cause == CALIBRATION
    assert why.startswith(arms[rescued].name)


def test_without_an_arm_of_the_same_strength_nothing_is_decided() -> None:
    study = Study()
    study.add(wanda(0.5), 0.3)
    study.add(wanda(0.7), 2.0)
    assert cause_of(study, "wanda-0.7") == (
        OPEN,
        "is the calibration to blame? nothing of the same strength has another calibration or none",
    )
    # A plain method that is lost as much, and a shuffled control that does worse, clear nobody.
    study.add(magnitude(0.7), 2.0)
    study.add(pruned("wanda_shuffled-0.7", "wanda", 0.7, shuffled=True), 4.0)
    cause, why = cause_of(study, "wanda-0.7")
    assert cause == OPEN
    assert "decides nothing" in why
    # 2:4 has the share of 50 %, and another freedom to choose.
    study.add(pruned("magnitude-2of4", "magnitude", 0.7), 9.0)
    study.variants["magnitude-2of4"].settings["sparsity"] = "2:4"
    assert cause_of(study, "wanda-0.7")[0] == OPEN


def test_damage_that_does_not_depend_on_the_strength_has_neither_cause() -> None:
    study = Study()
    for share, damage in ((0.3, 1.5), (0.5, 1.5), (0.7, 1.52)):
        study.add(magnitude(share), damage)
    assert [cause.cause for cause in causes.causes(study.evidence())] == [OPEN, NEITHER, NEITHER]
    saturated = Study()
    for share in (0.3, 0.5):
        saturated.add(magnitude(share), 8.0)
    assert cause_of(saturated, "magnitude-0.5")[0] == OPEN  # destroyed is destroyed, at any strength


def test_bits_are_a_strength_that_grows_as_they_fall_and_a_random_choice_is_no_calibration() -> None:
    study = Study()
    for bits, damage in ((4, 0.1), (3, 0.9)):
        study.add(replace(variant(f"rtn-{bits}", "weight_quantization", "rtn", bits, bits=bits), axis="bits"), damage)
    assert cause_of(study, "rtn-3")[0] == STRENGTH

    for share, damage, order, random in ((0.1, 0.2, 0.9, False), (0.3, 1.0, 2.0, True)):
        informed = replace(variant(f"depth-{share}", "depth_pruning", "depth", share, removed=share), axis="removed")
        informed.manifest["calibrated"] = True
        study.add(informed, damage)
        control = variant(f"random-{share}", "depth_pruning", "depth", share, removed=share, order="random")
        study.add(replace(control, axis="removed"), order)
        assert control.is_control
        if random:
            cause, why = cause_of(study, "depth-0.3")
            assert cause == STRENGTH
            assert "random-0.3" in why


def made(method: str, cause: str) -> causes.Cause:
    return causes.Cause("v", method, cause, "", 1.0, 0.9, 1.1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], NOT_MEASURED),
        ([("a", OPEN), ("b", OPEN)], NOT_DECIDED),
        ([("a", STRENGTH), ("a", CALIBRATION)], NOT_DECIDED),  # one method
        ([("a", STRENGTH), ("b", CALIBRATION), ("c", OPEN)], SUPPORTED),
        ([("a", NEITHER), ("b", NEITHER)], CONTRADICTED),
        ([("a", STRENGTH), ("b", NEITHER)], NOT_DECIDED),
    ],
)
def test_the_claim_counts_what_could_be_decided(found: list[tuple[str, str]], expected: str) -> None:
    finding = causes.judge([made(method, cause) for method, cause in found])
    assert finding.verdict == expected
    assert finding.comparisons == sum(cause != OPEN for _, cause in found)
