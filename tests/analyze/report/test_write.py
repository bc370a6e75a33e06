"""A page in its folder: whole, and named in provenance.json, which else stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hemorrhage.analyze.report.write import write


def test_the_address_is_added_to_what_is_said(tmp_path: Path) -> None:
    said = {"address": "of the numbers", "seeds": [0, 1], "page": "of an earlier page"}
    (tmp_path / "provenance.json").write_text(json.dumps(said))
    write(tmp_path, "<p>é</p>", "of the page")
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert json.loads((tmp_path / "provenance.json").read_text()) == {**said, "page": "of the page"}
    assert {file.name for file in tmp_path.iterdir()} == {"index.html", "provenance.json"}


def test_a_page_without_numbers_is_not_said_to_be_current(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path, "<p></p>", "of the page")
    assert not (tmp_path / "provenance.json").exists()
