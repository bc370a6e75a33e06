"""Texts of the variants that the decision is about."""

from __future__ import annotations

from dataclasses import replace

from hemorrhage.analyze.budget import INSIDE, OUTSIDE, UNRESOLVED
from hemorrhage.analyze.report.sections import texts
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.beside import Beside, Part
from tests.analyze.report.sections.test_ship import check, verdict

PICKED = verdict("rtn-6", 0.5, check(INSIDE, 0.05))
OPEN = verdict("awq-5", 0.4, check(UNRESOLVED, 0.11))
PAST = verdict("gptq-4", 0.3, check(OUTSIDE, 0.3))
WORSE = verdict("rtn-4", 0.3, check(OUTSIDE, 0.5))
TEXT = Beside("gptq-4", "prose", 3, "median", 2, 5, 8, "Once", [Part("upon", True)], [Part("on", False)])


def test_the_pick_the_next_smaller_and_the_first_past_a_limit() -> None:
    assert texts.roles([WORSE, PAST, OPEN, PICKED]) == {
        "the pick": "rtn-6",
        "the next smaller": "awq-5",
        "the first past a limit": "gptq-4",
    }
    assert texts.roles([PAST, PICKED]) == {"the pick": "rtn-6", "the next smaller": "gptq-4"}
    assert texts.roles([]) == {}


def test_decoded_variants_have_a_pair_and_the_others_a_way_to_get_one(study: Study) -> None:
    decoded = replace(study.decoded, beside=[replace(TEXT, place="first"), TEXT])
    content = texts.section(replace(study, verdicts=[PICKED, PAST, OPEN], decoded=decoded))
    assert content.pairs == [("the first past a limit", TEXT)]
    assert content.missing == (
        "Not decoded: rtn-6 (the pick), awq-5 (the next smaller). "
        "For their texts, add them to decode.variants in params.yaml: [rtn-6, awq-5]."
    )
