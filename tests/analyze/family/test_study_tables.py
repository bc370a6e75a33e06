"""The tables of a study of several models for the documentation, of a made-up result whose ratio is planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import study_tables

from hemorrhage.analyze.doctor.diagnose import LEAKAGE
from hemorrhage.analyze.family.models import Gap
from hemorrhage.analyze.family.results import Results
from tests.analyze.family.conftest import DESCRIBED
from tests.conftest import ROOT


def doctors(*leaking: str) -> dict[str, Any]:
    named = {"diagnoses": [{"cause": LEAKAGE, "score": 4.25}]}
    return {name: named if name in leaking else {"diagnoses": []} for name in DESCRIBED}


def test_models_verdicts_and_groups_are_written(results: Results) -> None:
    lines = list(study_tables.family(results, doctors(), "in small, 3 minutes"))
    assert lines[0] == "6 models (a 3, b 3), a model the unit; in small, 3 minutes."
    head = next(line for line in lines if line.startswith("| outcome | a |"))
    assert head == "| outcome | a | b | beside the loss |"
    (rtn,) = (line for line in lines if line.startswith("| rtn-4, KL (nats per token) |"))
    first, second = (float(cell.split(" ")[1]) for cell in rtn.split("|")[2:4])
    assert 2.7 < second / first < 3.3
    (shown,) = (line for line in lines if line.startswith("- rtn-4, KL (nats per token): b ×"))
    # The loss is one for all: groups that differ do so beyond it, or can't be told from it.
    assert shown.endswith(").") or shown.endswith(" of a.")
    for each in results.claims:
        assert f"- **{each.claim} {each.finding.verdict.capitalize()}:** {each.finding.measured}." in lines
    assert not any("Model Doctor" in line for line in lines)


def test_slopes_relations_gaps_and_leaks_have_their_rows(results: Results) -> None:
    more = replace(results, gaps=[Gap("c-0", "c", "the loss of step 3 is nan")])
    lines = list(study_tables.family(more, doctors("b-0", "b-1"), ""))
    assert lines[1] == "c-0 could not be made: the loss of step 3 is nan."
    assert "| b | 2 | 4.25 to 4.25 |" in lines
    assert "| a | 0 | all below 1 |" in lines
    assert any(line.startswith("| block influence, mean over blocks | ") for line in lines)


def test_reports_are_read_and_documents_written(reports: Path, tmp_path: Path, monkeypatch: Any) -> None:
    document = tmp_path / "page.md"
    begin, end = "<!-- python -m benchmarks.study_tables norms -->", "<!-- end of norms -->"
    document.write_text(f"before\n\n{begin}\noutdated\n{end}\n\nafter\n", encoding="utf-8")
    command = ["study_tables", "norms", str(reports), "--took", "in small", "--write", str(document)]
    monkeypatch.setattr("sys.argv", command)
    study_tables.main()
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n\n{begin}\n\n6 models (a 3, b 3), a model the unit; in small.")
    assert text.endswith(f"{end}\n\nafter\n")
    assert "outdated" not in text
    assert set(json.loads((reports / "doctor.json").read_text())) == set(DESCRIBED)


def test_the_families_are_the_studies_of_trained_models() -> None:
    files = (ROOT / "params/studies").glob("*.yaml")
    assert set(study_tables.FAMILIES) == {file.stem for file in files if "source: trained" in file.read_text("utf-8")}
