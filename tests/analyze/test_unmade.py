"""A model without numbers: its reports say why, and a study of that one model ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hemorrhage.analyze import __main__ as step
from hemorrhage.analyze import unmade
from hemorrhage.analyze.report.__main__ import draw
from hemorrhage.runtime import lacking
from hemorrhage.runtime.step import InputError
from hemorrhage.study.kinds import ROWS_FILES
from hemorrhage.study.plan import are_made

WHY = "small: the loss of step 3 is nan: the training has diverged"


def command(base: Path, reports: Path, *options: str) -> list[str]:
    spec = json.dumps({"resamples": 100, "confidence": 0.95, "seed": 0})
    given = ["--outputs", "base", str(base), "--spec", spec, "--address", "an address"]
    return ["hemorrhage.analyze", str(reports), *given, *options]


def test_reports_say_why_there_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, reports = tmp_path / "base", tmp_path / "reports" / "wild-0"
    lacking.record(base, WHY)
    reports.mkdir(parents=True)
    # Of a run in which it could be made.
    (reports / "study.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", command(base, reports, "--several"))
    step.main()
    assert unmade.reason(reports) == WHY
    assert not (reports / "study.json").exists()
    assert are_made(reports, "address", "an address", ROWS_FILES)
    draw(reports, "a page")
    assert WHY in (reports / "index.html").read_text(encoding="utf-8")
    assert are_made(reports, "page", "a page", ("index.html",))


def test_a_study_of_one_model_has_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking.record(tmp_path / "base", WHY)
    monkeypatch.setattr(sys, "argv", command(tmp_path / "base", tmp_path / "reports"))
    with pytest.raises(InputError, match="there is no model to study: small: the loss of step 3 is nan"):
        step.main()
