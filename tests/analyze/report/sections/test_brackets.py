"""The page says where the budget falls on each curve, and what was added there or why nothing was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hemorrhage.analyze import inputs as reading
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.report.sections import brackets
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.study import read as read_study
from hemorrhage.bracket.content import Addition, Bracket, CurveBracket, Screened
from tests import synthetic

NAMES = ("base", "rtn-8", "rtn-4", "gptq-4")

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


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of which one variant was confirmed on as many windows as it was evaluated on."""
    folder = tmp_path_factory.mktemp("brackets")
    outputs = synthetic.write(folder, windows=16, window=32)
    kinds = ("base", "checkpoints", "evaluations")
    read = reading.read({kind: [path for path in outputs[kind] if path.parent.name in NAMES] for kind in kinds})
    inputs = replace(read, bracket=BRACKET, confirmations={"rtn-4": read.evaluations["rtn-4"]})
    return analyze(folder / "reports", inputs, Spec(100, 0.95, 0, budget={"kl": 0.1}), "an address")


def test_a_study_without_a_screening_has_no_such_part(study: Study) -> None:
    plain = replace(study, inputs=replace(study.inputs, bracket=None, confirmations={}))
    assert brackets.section(plain) is None
    assert brackets.powers(plain) == []


def test_a_row_names_both_sides_and_what_lies_between(study: Study) -> None:
    part = brackets.section(study)
    assert part is not None
    rtn, awq = part.rows
    assert (rtn.inside, rtn.outside) == ("rtn-8 (10\u00a0%)", "rtn-4 (400\u00a0%)")
    assert (rtn.undecided, rtn.added) == ("none", "rtn-5")
    assert (awq.inside, awq.added) == ("the unaltered model", "nothing: there is no step between")
    assert "screened on 4 windows of each corpus" in part.text
    assert part.text.endswith("gptq-3 was not screened: ValueError: planted.")


def test_the_size_of_a_confirmation_is_held_to_its_power(study: Study) -> None:
    part = brackets.section(study)
    assert part is not None
    assert part.confirmation.startswith("Judged on text and items that nothing before has read: rtn-4.")
    of_prose = next(row for row in part.powers if row.dataset == "prose")
    assert (of_prose.limit, of_prose.measured) == ("KL, nats per token", "16 windows")
    assert of_prose.verdict == ("enough" if int(of_prose.needed.replace(",", "")) <= 16 else "too few")


def test_it_is_read_back_as_it_was_stored(study: Study, tmp_path_factory: pytest.TempPathFactory) -> None:
    stored = tmp_path_factory.getbasetemp() / "brackets0" / "reports"
    assert read_study(stored).inputs.bracket == study.inputs.bracket
