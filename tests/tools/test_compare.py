"""Two studies side by side: differences against literal formulas, and the page through a real git and DVC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import NOT_MEASURED, USAGE, YES, CommandError
from hemorrhage.tools import compare
from tests.analyze.rows.made import row


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit holds a study in DVC's cache, and whose folder holds a later one."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet")
    run("git", "config", "user.name", "test")
    run("git", "config", "user.email", "test@example.org")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    reports = tmp_path / "reports"
    reports.mkdir()
    (tmp_path / "params.yaml").write_text("compress: {rtn: {bits: [4]}}\n")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/a.smk").write_text("old\n")
    write(reports, 0.1)
    run(sys.executable, "-m", "dvc", "add", "--quiet", "reports/hemorrhage.parquet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "first study")
    (tmp_path / "params.yaml").write_text("compress: {rtn: {bits: [3]}}\n")
    (tmp_path / "rules/a.smk").write_text("new\n")
    (reports / "hemorrhage.parquet").unlink()
    write(reports, 0.4)
    return tmp_path


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def write(reports: Path, kl: float) -> None:
    pd.DataFrame([row("base", "kl_mean[w1]", 0.0, 0.0), row("rtn", "kl_mean[w1]", kl, 0.02)]).to_parquet(
        reports / "hemorrhage.parquet"
    )
    overall = {"variant": "rtn", "size": 0.25} if kl < 0.2 else {"variant": None, "size": None}
    (reports / "recommendation.json").write_text(json.dumps({"overall": overall}))
    machine = {"id": "e", "torch": str(kl)}
    (reports / "provenance.json").write_text(json.dumps({"analyzed_in": "e", "environments": {"e": machine}}))


def test_a_commit_and_the_folder_on_one_page(study: Path) -> None:
    page = compare.render(compare.read("HEAD"), compare.read("workspace"))
    for said in ("rtn, 25.0", "nothing inside the budget", "+0.3<small>+0.272 to +0.328", "first study"):
        assert said in page
    assert "compress.rtn.bits" in page
    assert "rules/a.smk" in page
    assert '<td class="mono">0.1</td>' in page, "the library that changed"
    with pytest.raises(CommandError, match="nowhere is not a revision that git knows"):
        compare.read("nowhere")
    for file in (study / ".dvc/cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(CommandError, match=r"HEAD: DVC has no reports/hemorrhage\.parquet"):
        compare.read("HEAD")
    (study / "reports/hemorrhage.parquet").unlink()
    with pytest.raises(CommandError, match="does not exist; run the study"):
        compare.read("workspace")


def test_the_command_writes_the_page_and_prints_what_a_machine_reads(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "HEAD", "workspace", "--out", "page/compare.html"]) == YES
    assert capsys.readouterr().out == "open page/compare.html\n"
    assert "first study" in (study / "page/compare.html").read_text()
    assert cli.main(["compare", "HEAD", "workspace", "--json"]) == YES
    content = json.loads(capsys.readouterr().out)
    (kl,) = (row for row in content["differences"] if row["variant"] == "rtn")
    assert kl["difference"] == pytest.approx(0.3)
    assert kl["certain"]
    assert {"key": "compress.rtn.bits", "a": [4], "b": [3]} in content["params"]
    assert [change["file"] for change in content["code"]] == ["rules/a.smk"]


def test_how_the_command_ends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "nowhere", "workspace"]) == USAGE
    assert capsys.readouterr().err == "hemorrhage compare: nowhere is not a revision that git knows\n"
    (study / "reports/hemorrhage.parquet").unlink()
    assert cli.main(["compare", "HEAD", "workspace"]) == NOT_MEASURED
    assert capsys.readouterr().err.count("\n") == 1
