"""``hemorrhage failed``: which variants failed, why, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import NO, YES
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT


def test_a_failed_variant_is_named_with_its_first_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["failed"]) == YES
    assert capsys.readouterr().err == ""
    plan = Plan.read()
    for kind, content in (("checkpoints", {"failure": "it broke"}), ("evaluations", {"failure": "not made"})):
        manifest = Path(plan.manifest(kind, "rtn-4"))
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps(content))
    assert cli.main(["failed"]) == NO
    reason, advice = capsys.readouterr().err.splitlines()
    assert reason == "rtn-4 failed: it broke"
    assert advice.startswith(f"1 of {len(plan.variants) + 1} models failed")
    assert advice.endswith("hemorrhage invalidate rtn-4")
