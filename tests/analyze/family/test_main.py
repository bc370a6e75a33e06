"""The step: files of several models in one folder, which the page step finds complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from hemorrhage.analyze import unmade
from hemorrhage.analyze.family.__main__ import analyze
from hemorrhage.analyze.family.models import Gap
from hemorrhage.analyze.family.page.__main__ import draw
from hemorrhage.runtime.step import InputError
from hemorrhage.study.kinds import PAGE_FILES, ROWS_FILES
from hemorrhage.tools import claims
from tests.analyze.family.conftest import DESCRIBED, SPEC

WHY = "wild: the loss of step 3 is nan: the training has diverged"


def test_every_file_of_reports_is_there(reports: Path) -> None:
    names = {file.name for file in reports.iterdir() if file.is_file()}
    assert names == {*ROWS_FILES, *PAGE_FILES, "provenance.json"}
    provenance = json.loads((reports / "provenance.json").read_text())
    assert (provenance["address"], provenance["page"]) == ("an address", "a page")
    assert list(provenance["models"]) == list(DESCRIBED)


def test_rows_have_their_model_in_front(reports: Path) -> None:
    rows = pd.read_parquet(reports / "hemorrhage.parquet")
    assert list(rows.columns[:3]) == ["model", "group", "variant"]
    alone = pd.read_parquet(reports / "b-1" / "hemorrhage.parquet")
    mine = rows[rows["model"] == "b-1"]
    assert set(mine["group"]) == {"b"}
    assert mine["estimate"].reset_index(drop=True).equals(alone["estimate"])


def test_the_command_line(reports: Path) -> None:
    before = (reports / "study.json").read_bytes()
    spec = json.dumps({"resamples": SPEC.resamples, "confidence": SPEC.confidence, "seed": SPEC.seed})
    command = [sys.executable, "-m", "hemorrhage.analyze.family", str(reports), "--models", json.dumps(DESCRIBED)]
    subprocess.run([*command, "--spec", spec, "--address", "an address"], check=True, timeout=120)
    assert (reports / "study.json").read_bytes() == before
    page = [sys.executable, "-m", "hemorrhage.analyze.family.page", str(reports), "--address", "a page"]
    subprocess.run(page, check=True, timeout=120)
    assert json.loads((reports / "provenance.json").read_text())["page"] == "a page"


def test_a_model_that_could_not_be_made_is_a_gap(reports: Path, tmp_path: Path) -> None:
    mine = tmp_path / "reports"
    shutil.copytree(reports, mine)
    unmade.write(mine / "b-2", WHY, "another address")
    concluded = analyze(mine, DESCRIBED, SPEC, "an address")
    assert concluded.gaps == [Gap("b-2", "b", WHY)]
    assert [row.model for row in concluded.models] == [name for name in DESCRIBED if name != "b-2"]
    assert set(pd.read_parquet(mine / "hemorrhage.parquet")["model"]) == set(DESCRIBED) - {"b-2"}
    for effect in concluded.effects:
        a, b = effect.levels
        assert (a.lacking, b.lacking, b.reason) == (0, 1, WHY)
        assert effect.contrasts[0].verdict == "too few models"
    draw(mine, "a page")
    assert WHY in (mine / "index.html").read_text(encoding="utf-8")


def test_a_study_without_a_model_says_why(reports: Path, tmp_path: Path) -> None:
    mine = tmp_path / "reports"
    shutil.copytree(reports, mine)
    for name in DESCRIBED:
        unmade.write(mine / name, WHY, "another address")
    with pytest.raises(InputError, match="no model of this study could be made; a-0: wild"):
        analyze(mine, DESCRIBED, SPEC, "an address")


def test_the_command_claims_reads_a_study_of_several_models(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "family"
    shutil.copytree(reports, folder / "reports")
    assert claims.main([str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    verdicts = next(each["by_study"] for each in content["claims"] if each["key"] == "structured_worse")
    assert list(verdicts) == [f"family/{name}" for name in DESCRIBED]
    # Models of one name count once, whatever their seeds.
    general = next(each["verdict"] for each in content["claims"] if each["key"] == "structured_worse")
    assert general.endswith("models decide, 3 are needed")
    families = {each["key"]: each for each in content["families"]}
    assert families["pruned_by_loss"]["study"] == "family"
    assert families["norms"]["verdict"] == "not measured"
    assert families["norms"]["measured"] == "takes `params/studies/norms`"
    text = "\n".join(claims.family_text(claims.of_families([folder])))
    assert "How layers are normalized decides how much damage a model takes. not measured" in text
