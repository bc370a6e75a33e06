"""What rules and dvc.yaml ask: garbage, failures, addresses, of the study in the current folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage.study import __main__ as commands
from hemorrhage.study.family import Family
from hemorrhage.study.plan import DATA
from tests.study.test_members import CONTENT


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Family:
    monkeypatch.chdir(tmp_path)
    models = {"a": CONTENT["model"], "b": {"source": "path", "path": str(tiny)}}
    with Path("params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump({**CONTENT, "model": {"source": "models"}, "models": models}, stream)
    return Family.read()


def test_addresses_are_by_model(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["addresses"]) == 0
    addresses = json.loads(capsys.readouterr().out)
    assert addresses == family.addresses()
    assert addresses["b/checkpoints/rtn-4"] == family.plans["b"].address("checkpoints", "rtn-4")


def test_a_failure_is_an_exit_code(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["failed"]) == 0
    manifest = Path(family.plans["b"].manifest("checkpoints", "rtn-4"))
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"failure": "no luck"}))
    assert commands.main(["failed"]) == 1
    assert "b/rtn-4 failed: no luck" in capsys.readouterr().err


def test_garbage_is_named(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    stale = DATA / "checkpoints" / "rtn-4" / "0123456789ab"
    stale.mkdir(parents=True)
    assert commands.main(["gc", "checkpoints"]) == 0
    assert capsys.readouterr().out == f"removed {stale}\n"
