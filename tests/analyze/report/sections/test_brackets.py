"""The page says where the budget falls on each curve, and what was added there or why nothing was."""

from __future__ import annotations

from hemorrhage.analyze.report.sections import brackets
from hemorrhage.bracket.content import Addition, Bracket, CurveBracket, Screened

BRACKET = Bracket(
    windows=4,
    allowance=3,
    screened=(
        Screened("rtn-8", 0.1, 0.05, 0.2, 0.6, "inside"),
        Screened("rtn-4", 4.0, 2.0, 8.0, 0.35, "outside"),
        Screened("awq-3", 9.0, 5.0, 12.0, 0.3, "outside"),
    ),
    curves=(
        CurveBracket("rtn", "bits", "rtn-8", "rtn-4", (), ("rtn-5",), ""),
        CurveBracket("awq", "bits", None, "awq-3", (), (), "there is no step between"),
    ),
    added=(Addition("rtn-5", "rtn", {"bits": 5}),),
    confirmed=("rtn-5", "rtn-8"),
    failed={"gptq-3": "ValueError: planted"},
)


def test_a_study_without_a_screening_has_no_such_part() -> None:
    assert brackets.section(None) is None


def test_a_row_names_both_sides_and_what_lies_between() -> None:
    part = brackets.section(BRACKET)
    assert part is not None
    rtn, awq = part.rows
    assert (rtn.inside, rtn.outside) == ("rtn-8 (10\u00a0%)", "rtn-4 (400\u00a0%)")
    assert (rtn.undecided, rtn.added) == ("none", "rtn-5")
    assert (awq.inside, awq.added) == ("the unaltered model", "nothing: there is no step between")
    assert "screened on 4 windows of each corpus" in part.text
    assert part.text.endswith("gptq-3 was not screened: ValueError: planted.")
