"""``hemorrhage invalidate``: one variant's outputs go, the others stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import USAGE, YES
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT


def test_the_named_variant_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    plan = Plan.read()
    folders = {name: Path(plan.manifest("checkpoints", name)).parent for name in ("rtn-4", "rtn-3")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    assert cli.main(["invalidate", "rtn-4"]) == YES
    assert capsys.readouterr().out == f"removed {folders['rtn-4']}\n"
    assert not folders["rtn-4"].exists()
    assert folders["rtn-3"].is_dir()
    provenance = Path("reports/provenance.json")
    provenance.parent.mkdir()
    provenance.touch()
    assert cli.main(["invalidate", "rtn-4"]) == YES
    assert capsys.readouterr().out == "nothing to remove: no output of these variants is in data/\n"
    assert provenance.is_file()
    assert cli.main(["invalidate", "rtn-5"]) == USAGE
    assert capsys.readouterr().err.startswith(
        "hemorrhage invalidate: rtn-5 is not a variant; variants are base, rtn-8, "
    )
