"""``hemorrhage cache``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import USAGE, YES
from tests.judge.test_cache import output


def test_it_lists_bounds_and_empties_what_judgements_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, used in (("a", 1.0), ("b", 2.0)):
        output(tmp_path, name, 2_000_000, used)
    asked = ["cache", "--cache", str(tmp_path)]
    assert cli.main([*asked, "--json"]) == YES
    listed = json.loads(capsys.readouterr().out)
    assert [each["output"] for each in listed["outputs"]] == [f"evaluations/{name}/0123456789ab" for name in "ab"]
    assert cli.main([*asked, "--limit", "0.003"]) == YES
    shown = capsys.readouterr().out
    assert shown.startswith("2.0 MB removed in 1 outputs\n")
    assert shown.rstrip().endswith(f"2.0 MB in 1 outputs of {tmp_path}")
    assert cli.main([*asked, "--limit", "1", "--json"]) == YES
    shown, said = capsys.readouterr()
    assert (json.loads(shown)["bytes"], said) == (2_000_000, "0.0 MB removed in 0 outputs\n")
    with pytest.raises(SystemExit, match=str(USAGE)):
        cli.main([*asked, "--limit=-1"])
    assert "-1 is not a number of at least 0" in capsys.readouterr().err
    assert cli.main([*asked, "--clear"]) == YES
    assert capsys.readouterr().out == "2.0 MB removed\n"
