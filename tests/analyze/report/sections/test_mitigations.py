"""Mitigations: the table, the relative severity, sweeps to add."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.report.sections import mitigations
from hemorrhage.analyze.report.sections.mitigations import EXAMPLES, relative_severity
from hemorrhage.analyze.rows.corrections import DECODING
from hemorrhage.analyze.rows.mitigations import Outcome, Recovery, TrialSummary
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.info import SCALES
from tests.analyze.report.examples import entry, inputs, located, numbers, row, variant

PLAIN = variant("rtn-3", severity=6.0)
TREATED = variant("awq-3", severity=6.0, can_be_shuffled=True, settings={"bits": 3, "group_size": 64, "widths": [1, 2]})
HELPED = Outcome("kl_mean", "prose", 0.5, 0.3, Recovery(0.4, 0.3, 0.5), True, Recovery(0.0, -0.1, 0.1), "recovers")
FLIPS = Outcome("flips", "all tasks", 0.1, 0.1, None, False, None, "no damage to recover")
TRIAL = TrialSummary(SCALES, "awq-3", PLAIN, TREATED, None, [FLIPS, HELPED], "")
KNEE = entry("rtn", thresholds={"knee": located(8.0)})


def test_severity_is_relative_to_the_knee_else_to_the_doubling_point() -> None:
    share = variant("wanda-0.5", axis="sparsity", severity=0.25)
    pruned = entry("wanda", axis="sparsity", base=0.0, thresholds={"knee": located(0.5)})
    doubling = entry("rtn", thresholds={"two_fold": located(11.0)})
    for plain, entries, severity, threshold in (
        (PLAIN, [KNEE], 1.25, "knee"),
        (PLAIN, [doubling], 2.0, "doubling point"),
        (share, [KNEE, pruned], 0.5, "knee"),
    ):
        value, name = relative_severity(plain, entries, "prose")
        assert (round(value, 9), name) == (severity, threshold)
    value, reason = relative_severity(PLAIN, [entry("rtn")], "prose")
    assert math.isnan(value)
    assert reason == "no knee and no doubling point among the measured points"


def test_a_trial_is_a_row_with_its_control() -> None:
    (line,) = mitigations.rows([TRIAL], [KNEE], "prose")
    assert (line.treatment, line.plain, line.verdict) == ("awq-3", "rtn-3", "recovers")
    assert line.severity == "1.25 × that of the knee"
    assert line.damage == "0.5 nats → 0.3 nats"
    assert (line.recovery, line.control) == ("40\u00a0% (30 to 50)", "0\u00a0% (-10 to 10)")
    assert line.others == "flips: no damage"


def test_a_failed_side_is_a_row_with_its_reason() -> None:
    failed = TrialSummary(SCALES, "awq-3", PLAIN, TREATED, None, [], "rtn-3: no luck")
    (line,) = mitigations.rows([failed], [], "prose")
    assert line.missing == "rtn-3: no luck"
    assert mitigations.rows([TRIAL], [KNEE], "code") == [], "flips alone are of no corpus"


def outcome(verdict: str, metric: str = "kl_mean", low: float = 0.0, **more: Any) -> Outcome:
    return Outcome(metric, "prose", 0.5, 0.4, Recovery(low + 0.1, low, low + 0.2), True, None, verdict, **more)


def judged(*outcomes: Outcome, arm: str = SCALES) -> list[mitigations.Statement]:
    trial = TrialSummary(arm, "awq-3", PLAIN, TREATED, None, list(outcomes), "")
    spec = Spec(400, 0.95, 0, {"kl": 0.05})
    return list(mitigations.statements(arm, [trial], [KNEE], spec))


def test_a_proposal_is_judged_by_all_of_its_comparisons() -> None:
    (one,) = judged(outcome("recovers", low=0.3), outcome("not worth it"))
    assert one.verdict == "Recovers"
    counted = "1 of 2 comparisons recover, 1 of them beyond a neutral control"
    assert one.reason.startswith(f"{counted}: awq-3 40\u00a0% (30 to 50) of the KL of rtn-3 on prose.")
    assert one.reason.endswith("Beyond 1 of 2.")
    (one,) = judged(outcome("not worth it"), outcome("harms"), outcome("no better than its control"))
    assert one.verdict == "Not worth it"
    (one,) = judged(outcome("not worth it"), outcome("cannot tell at this size", blocks=16, needed=90))
    assert one.verdict == "Cannot tell at this size"
    assert one.reason.endswith("the median of them takes 90 windows or items")
    # One recovery among 40 is what chance makes of nothing.
    (one,) = judged(outcome("recovers", low=0.3), *[outcome("not worth it")] * 39)
    assert one.verdict == "Not worth it"
    (one,) = judged(Outcome("kl_mean", "prose", 0.0, 0.0, None, False, None, "no damage to recover"))
    assert one.verdict == "No damage to recover"
    assert next(mitigations.statements(SCALES, [], [], Spec(400, 0.95, 0))).verdict == "Not tried"


def test_what_is_written_is_judged_apart() -> None:
    tokens, texts = judged(
        outcome("recovers", low=0.3), outcome("cannot tell at this size", "greedy_loops"), arm=DECODING
    )
    assert (tokens.verdict, texts.verdict) == ("Recovers", "Cannot tell at this size")
    assert texts.arm == f"{DECODING}, on what is written"


def test_the_severity_falls_back_on_the_budget() -> None:
    (line,) = mitigations.rows([TRIAL], [], "prose", limit=0.05)
    assert line.severity == "10 × the budget's KL"
    (line,) = mitigations.rows([TRIAL], [], "prose")
    assert line.severity == "–"
    open_one = TrialSummary(
        SCALES, "awq-3", PLAIN, TREATED, None, [outcome("cannot tell at this size", blocks=16, needed=90)], ""
    )
    (line,) = mitigations.rows([open_one], [], "prose")
    assert line.needed == "90 windows or items would, here are 16"


def test_what_corrected_models_write_is_a_table() -> None:
    study = inputs(variant("rtn-3"), corrections={"rtn-3": Output({"corpus": "prose"}, {})})
    content = [
        row("rtn-3", f"{metric}{{correction={name},search=greedy}}", value, dataset="prose")
        for name, value in (("bias", 6.0), ("none", 4.0), ("base", 12.0))
        for metric in ("loop_rate", "agreement_tokens", "base_nll")
    ]
    trial = TrialSummary(
        DECODING, "rtn-3, bias", study.variants["rtn-3"], TREATED, None, [outcome("harms", "greedy_loops")], ""
    )
    found = mitigations.text_rows(pd.DataFrame(content), study, numbers(*content), [trial])
    assert [each.correction for each in found] == ["the base model", "uncorrected", "bias"]
    assert found[2].cells[2].verdict == "harms"
    assert found[0].cells[1].value == "", "the base agrees with itself"
    assert found[1].cells[1].value.startswith("4.0")


def test_recovery_is_drawn_against_severity_where_that_is_known_and_damage() -> None:
    for axis, entries, points in (("severity", [KNEE], 2), ("severity", [], 0), ("damage", [], 2), ("budget", [], 2)):
        chart = mitigations.recovery_chart([TRIAL], entries, "prose", axis, limit=0.05)
        assert sum(len(trace["x"]) for trace in chart["data"]) == points
    treated, control = mitigations.recovery_chart([TRIAL], [], "prose", "damage")["data"]
    assert (treated["x"], control["name"]) == ([0.5], f"{SCALES}, control")
    assert treated["text"] == ["<b>awq-3</b><br>on rtn-3: recovers 40\u00a0% (30 to 50) of KL"]


def test_a_control_to_add_can_be_pasted() -> None:
    proposed = {proposal.reason: proposal.lines for proposal in mitigations.proposals([TRIAL, TRIAL])}
    assert f"{SCALES}: not tried" not in proposed
    (line,) = proposed["Tried without a control"]
    assert YAML(typ="safe").load(line) == {
        "awq_3_shuffled": {"method": "rtn", "bits": 3, "group_size": 64, "shuffled": True}
    }


def test_arms_that_were_not_tried_are_proposed() -> None:
    reasons = [proposal.reason for proposal in mitigations.proposals([])]
    assert reasons == [*(f"{arm}: not tried" for arm in EXAMPLES), f"{DECODING}: not tried"]


@pytest.mark.parametrize("arm", EXAMPLES)
def test_proposed_settings_are_the_examples_of_the_methods_themselves(arm: str) -> None:
    example = EXAMPLES[arm]
    info = method_of(example.method).info
    settings = {key: value[0] if isinstance(value, list) else value for key, value in example.settings.items()}
    assert settings == info.examples[0]
    assert {**settings, "shuffled": True} in info.examples
    assert (arm, example.plain) in [(comparison.arm, comparison.plain) for comparison in info.improves_on]
    if example.plain:
        method_of(example.plain).settings(**settings)


@pytest.mark.parametrize("arm", EXAMPLES)
def test_proposed_lines_can_be_pasted(arm: str) -> None:
    lines = mitigations.example_lines(EXAMPLES[arm])
    treated, shuffled = (YAML(typ="safe").load(line) for line in lines[:2])
    ((name, content),) = treated.items()
    assert content["method"] == name == EXAMPLES[arm].method
    assert shuffled == {f"{name}_shuffled": {**content, "shuffled": True}}


def test_corrections_of_decoding_are_rows() -> None:
    seconds = {"none": 0.02, "temperature": 0.021}
    study = inputs(
        variant("rtn-3"), corrections={"rtn-3": Output({"corpus": "prose", "seconds_per_token": seconds}, {})}
    )
    content = [
        row("rtn-3", f"{metric}{{correction={name}}}[p]", 0.5, 0.4, 0.6, dataset="prose")
        for name in ("none", "temperature")
        for metric in ("calibration_error", "kl_mean")
    ]
    first, second = mitigations.calibration_rows(pd.DataFrame(content), study, numbers(*content))
    assert (first.correction, second.correction) == ("uncorrected", "temperature")
    assert (first.kl, first.error, first.greedy) == ("0.500 (0.400 to 0.600)", "50.0 (40.0 to 60.0)", "–")
    assert (first.corpus, first.cost, second.cost) == ("prose", "20.0", "21.0 (+5\u00a0%)")


def test_the_section_of_a_study(study: Study) -> None:
    content = mitigations.section(study)
    assert set(content.rows) == {"prose", "code"}
    assert "damage" in content.axes
    assert set(content.figures) == {f"recovery|{axis}|{corpus}" for axis in mitigations.AXES for corpus in content.rows}
