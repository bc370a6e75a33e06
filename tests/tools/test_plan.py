"""``hemorrhage plan``: every planned output, and which of them are done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.runtime.command import USAGE, YES
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT
from tests.study.test_params import changed, own


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The default study in a folder where one checkpoint is made."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    made = Plan.read()
    manifest = Path(made.manifest("checkpoints", "rtn-4"))
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    return made


def test_people_read_counts(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"]) == YES
    lines = capsys.readouterr().out.splitlines()
    assert f"{'checkpoints':24s}    1/{len(plan.variants)} done" in lines
    assert f"{'evaluations':24s}    0/{len(plan.variants) + 1} done" in lines
    assert lines[-2:] == [f"{name:24s} to be made" for name in ("rows", "page")]


def test_machines_read_every_output(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--json"]) == YES
    content = json.loads(capsys.readouterr().out)
    checkpoints = {output["name"]: output for output in content["outputs"]["checkpoints"]}
    assert list(checkpoints) == list(plan.variants)
    assert [name for name, output in checkpoints.items() if output["done"]] == ["rtn-4"]
    assert checkpoints["rtn-4"]["path"] == str(Path(plan.manifest("checkpoints", "rtn-4")).parent)
    assert not content["report_is_current"]


def test_params_that_cannot_be_run_are_one_line(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("cache_version: none\n")
    assert cli.main(["plan"]) == USAGE
    Path("params.yaml").unlink()
    assert cli.main(["plan"]) == USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("hemorrhage plan: params.yaml: ")
    assert second == "hemorrhage plan: params.yaml: there is no such file"


def test_text_that_is_calibrated_on_and_evaluated_is_a_warning(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = changed("calibrate/corpus", own(tmp_path, "logs"))
    content["evaluate"]["corpora"] = ["prose", own(tmp_path, "support")]
    (tmp_path / "logs.jsonl").write_text((tmp_path / "support.jsonl").read_text() * 2)
    YAML().dump(content, tmp_path / "params.yaml")
    assert cli.main(["plan"]) == YES
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/support.jsonl: 100.0 % of its texts and ")
    assert warning.count("\n") == 1
