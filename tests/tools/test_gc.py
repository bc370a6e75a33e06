"""``hemorrhage gc``: what params.yaml no longer asks for goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import USAGE, YES
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT


def test_what_the_plan_does_not_name_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    kept = Path(Plan.read().manifest("checkpoints", "rtn-4")).parent
    old, other = Path("data/checkpoints/rtn-4/aaaaaaaaaaaa"), Path("data/evaluations/rtn-4/bbbbbbbbbbbb")
    for folder in (kept, old, other):
        folder.mkdir(parents=True)
    assert cli.main(["gc", "checkpoints"]) == YES
    assert capsys.readouterr().out == f"removed {old}\n"
    assert kept.is_dir()
    assert other.is_dir(), "another kind was not asked for"


def test_an_unknown_kind_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gc", "models"])
    assert stopped.value.code == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid choice: 'models'" in line
