"""The step: files of several models in one folder, which the page step finds complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from hemorrhage.study.kinds import PAGE_FILES, ROWS_FILES
from tests.analyze.family.conftest import DESCRIBED, SPEC


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
