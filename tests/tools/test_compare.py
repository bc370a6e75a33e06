"""Two studies side by side: differences against literal formulas, and the page through a real git and DVC."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from dvc.repo import Repo

from hemorrhage import cli
from hemorrhage.runtime.command import NOT_MEASURED, USAGE, YES
from hemorrhage.tools import compare
from hemorrhage.tools.revisions import read
from tests.analyze.rows.made import row


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit holds a study in DVC's cache, and whose folder holds a later one."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet")
    run("git", "config", "user.name", "test")
    run("git", "config", "user.email", "test@example.org")
    Repo.init().close()
    reports = tmp_path / "reports"
    reports.mkdir()
    (tmp_path / "params.yaml").write_text("compress: {rtn: {bits: [4]}}\n")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/a.smk").write_text("old\n")
    write(reports, 0.1)
    add()
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "first study")
    (tmp_path / "params.yaml").write_text("compress: {rtn: {bits: [3]}}\n")
    (tmp_path / "rules/a.smk").write_text("new\n")
    (reports / "hemorrhage.parquet").unlink()
    write(reports, 0.4)
    return tmp_path


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def add() -> None:
    """Put the rows into DVC's cache: what `dvc add` does, without a start of Python."""
    with Repo() as repo:
        repo.add("reports/hemorrhage.parquet")


def write(reports: Path, kl: float) -> None:
    pd.DataFrame([row("base", "kl_mean[w1]", 0.0, 0.0), row("rtn", "kl_mean[w1]", kl, 0.02)]).to_parquet(
        reports / "hemorrhage.parquet"
    )
    overall = {"variant": "rtn", "size": 0.25} if kl < 0.2 else {"variant": None, "size": None}
    (reports / "recommendation.json").write_text(json.dumps({"overall": overall}))
    machine = {"id": "e", "torch": str(kl)}
    (reports / "provenance.json").write_text(json.dumps({"analyzed_in": "e", "environments": {"e": machine}}))


def test_a_commit_and_the_folder_on_one_page(study: Path) -> None:
    page = compare.render(read("HEAD"), read("workspace"))
    for said in ("rtn, 25.0", "nothing inside the budget", "+0.3<small>+0.272 to +0.328", "first study"):
        assert said in page
    assert "compress.rtn.bits" in page
    assert "rules/a.smk" in page
    assert '<td class="mono">0.1</td>' in page, "the library that changed"


def test_the_command_writes_the_page_and_prints_what_a_machine_reads(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "HEAD", "workspace", "--out", "page/compare.html"]) == YES
    assert capsys.readouterr().out == ("open page/compare.html; 4 numbers of 2 revisions are in page/compare.csv\n")
    assert "first study" in (study / "page/compare.html").read_text()
    table = pd.read_csv(study / "page/compare.csv").set_index(["revision", "variant"])
    assert table.difference["workspace", "rtn"] == pytest.approx(0.3)
    assert table["compress.rtn.bits"]["HEAD", "rtn"] == "[4]"
    assert cli.main(["compare", "HEAD", "workspace", "--json"]) == YES
    content = json.loads(capsys.readouterr().out)
    (kl,) = (row for row in content["differences"] if row["variant"] == "rtn")
    assert kl["difference"] == pytest.approx(0.3)
    assert kl["certain"]
    assert {"key": "compress.rtn.bits", "a": [4], "b": [3]} in content["params"]
    assert [change["file"] for change in content["code"]] == ["rules/a.smk"]


def test_a_number_of_one_side_is_on_the_page(study: Path) -> None:
    rows = [
        row("base", "kl_mean[w1]", 0.0, 0.0),
        row("rtn", "kl_mean[w2]", 0.7654, 0.02),
        row("rtn", "kl_p99[w1]", 2.0),
    ]
    pd.DataFrame(rows).to_parquet(study / "reports/hemorrhage.parquet")
    page = compare.render(read("HEAD"), read("workspace"))
    assert "0.7654<small>0.745 to 0.785" in page
    assert "Where both have a metric under different protocols" in page


def test_other_metrics_than_the_headline_are_compared(study: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        pd.DataFrame([row("rtn", "kl_p99[w1]", value, 0.1)]).to_parquet(study / f"{name}.parquet")
    a, b = (
        dataclasses.replace(read("workspace"), rows=pd.read_parquet(study / f"{name}.parquet")) for name in ("a", "b")
    )
    page = compare.render(a, b)
    assert "Other metrics: 1 differences" in page
    assert "+2<small>+1.86 to +2.14" in page


def test_experiments_of_head_are_one_table_and_one_page(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = experiment("five", 0.2)
    experiment("six", 0.3)
    (study / "dvc.lock").write_text("stages: {}\n")
    assert cli.main(["compare"]) == YES
    assert capsys.readouterr().out == (
        "open reports/compare.html; 4 numbers of 2 revisions are in reports/compare.csv\n"
    ), "HEAD has no dvc.lock of its study: two experiments are left"
    assert cli.main(["compare", "HEAD", "five", "six", "--out", "all.html", "--table", "all.parquet"]) == YES
    table = pd.read_parquet(study / "all.parquet")
    assert list(dict.fromkeys(table.revision)) == ["HEAD", "five", "six"]
    of_rtn = table[table.variant == "rtn"].set_index("revision")
    assert of_rtn.difference.tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert of_rtn.commit["HEAD"] == head[:10]
    assert "Each variant by compress.rtn.bits" in (study / "all.html").read_text()


def experiment(name: str, kl: float) -> str:
    """An experiment of HEAD as DVC keeps one: a commit below refs/exps, on no branch. Returns HEAD."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    Path("params.yaml").write_text(f"compress: {{rtn: {{bits: [{name}]}}}}\n")
    write(Path("reports"), kl)
    add()
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", name)
    run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    run("git", "reset", "--quiet", "--hard", head)
    return head


def test_how_the_command_ends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "nowhere", "workspace"]) == USAGE
    assert capsys.readouterr().err == (
        "hemorrhage compare: nowhere is no revision that git knows and no experiment of DVC "
        "(experiments: there are none)\n"
    )
    assert cli.main(["compare", "HEAD"]) == USAGE
    assert "name two revisions or more" in capsys.readouterr().err
    assert cli.main(["compare"]) == NOT_MEASURED
    assert "neither HEAD nor an experiment of it has a study" in capsys.readouterr().err
    assert cli.main(["compare", "HEAD", "workspace", "--table", "table.xlsx"]) == USAGE
    assert capsys.readouterr().err == "hemorrhage compare: --table table.xlsx: a table ends in .csv or .parquet\n"
    (study / "reports/hemorrhage.parquet").unlink()
    assert cli.main(["compare", "HEAD", "workspace"]) == NOT_MEASURED
    assert capsys.readouterr().err.count("\n") == 1
