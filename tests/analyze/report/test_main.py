"""The page step: draws index.html and says so in provenance.json."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from hemorrhage.analyze.report.__main__ import draw
from hemorrhage.analyze.report.write import PAGE
from tests.analyze.report.conftest import ADDRESS


def copy(reports: Path, folder: Path) -> Path:
    """Copy the files that the rows step leaves."""
    shutil.copytree(reports, folder, ignore=shutil.ignore_patterns(PAGE))
    return folder


def test_the_address_of_the_page_is_in_the_provenance(reports: Path, tmp_path: Path) -> None:
    folder = copy(reports, tmp_path / "reports")
    before = json.loads((folder / "provenance.json").read_text())
    draw(folder, "another page")
    assert json.loads((folder / "provenance.json").read_text()) == {**before, "page": "another page"}
    assert before["address"] == ADDRESS
    assert (folder / PAGE).read_bytes() == (reports / PAGE).read_bytes()
    assert not list(folder.glob("*.part-*"))


def test_command_line(reports: Path, tmp_path: Path) -> None:
    folder = copy(reports, tmp_path / "reports")
    command = [sys.executable, "-m", "hemorrhage.analyze.report", str(folder), "--address", "abc"]
    subprocess.run(command, check=True, timeout=120)
    assert json.loads((folder / "provenance.json").read_text())["page"] == "abc"
    assert (folder / PAGE).is_file()
