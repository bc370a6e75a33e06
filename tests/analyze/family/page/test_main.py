"""The page step of several models: drawn in provenance.json, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hemorrhage.analyze.family.page.__main__ import draw


def test_the_address_of_the_page_is_in_the_provenance(reports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    for name in ("study.json", "provenance.json"):
        shutil.copy(reports / name, folder)
    before = json.loads((folder / "provenance.json").read_text())
    draw(folder, "another page")
    assert json.loads((folder / "provenance.json").read_text()) == {**before, "page": "another page"}
    assert (folder / "index.html").read_bytes() == (reports / "index.html").read_bytes()
