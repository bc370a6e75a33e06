"""Commits, clones and experiments of a computed project through the real DVC, on the quick profile, counting jobs.

Each test leaves the project as it found it, computed and committed.
"""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.project import REPORT, Project

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("left_as_found")]


@pytest.fixture(scope="module", autouse=True)
def computed(project: Project) -> None:
    """Everything is made, recorded and committed."""
    project.run("dvc", "repro", "--quiet")
    project.commit("computed")


def test_the_cache_adds_no_second_copy_of_a_checkpoint(project: Project) -> None:
    weights = list((project.root / "data/checkpoints").rglob("*.safetensors"))
    assert weights
    assert all(file.stat().st_nlink >= 2 for file in weights)


def test_a_fresh_clone_pulls_and_has_nothing_to_do(project: Project) -> None:
    remote = project.root.parent / "remote"
    project.run("dvc", "remote", "add", "--default", "--force", "local", str(remote))
    project.commit("remote")
    project.run("dvc", "push", "--quiet")
    clone = Project(project.root.parent / "clone", project.journal, project.root.parent / "tools")
    project.run("git", "clone", "--quiet", str(project.root), str(clone.root))
    clone.run("dvc", "pull", "--quiet")
    assert not clone.jobs("snakemake")
    assert not clone.jobs("dvc", "repro")
    assert (clone.root / "reports/index.html").read_bytes() == (project.root / "reports/index.html").read_bytes()
    clone.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.3,")
    assert clone.jobs("dvc", "repro") == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, **REPORT}


def test_the_story_of_a_colleague_runs_as_it_is_written(project: Project) -> None:
    """The code blocks of docs/STUDIES.md, with a folder and a URL that are there."""
    text = (ROOT / "docs/STUDIES.md").read_text().partition("\n## A colleague\n")[2].partition("\n## ")[0]
    once, after_each, theirs = re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S)
    project.run("git", "checkout", "--quiet", "-b", "shared")
    project.run("bash", "-euc", once.replace("/some/folder", str(project.root.with_name("store"))))
    for resamples in (300, 400):
        project.edit("params.yaml", f"resamples: {resamples - 100}", f"resamples: {resamples}")
        project.run("bash", "-euc", after_each)
    elsewhere = Project(project.root.parent / "elsewhere", project.journal, project.root.parent / "tools")
    elsewhere.root.mkdir()
    script = theirs.replace("URL", str(project.root))
    said = elsewhere.run("bash", "-euc", script).stdout
    assert "of 2 revisions are in reports/compare.csv" in said
    assert (elsewhere.root / "study/reports/compare.html").is_file()
    assert not Project(elsewhere.root / "study", project.journal, project.root.parent / "tools").jobs("snakemake")


def test_an_older_commit_and_back_has_nothing_to_do(project: Project) -> None:
    project.run("git", "checkout", "--quiet", "-b", "newer")
    project.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.4,")
    project.jobs("dvc", "repro")
    project.commit("another damping")
    of_all = ("dvc", "metrics", "diff", "--json", "main", "--targets", "reports/metrics.json")
    changed = json.loads(project.run(*of_all).stdout)["reports/metrics.json"]
    assert changed
    assert all("gptq-3" in key for key in changed), "only the changed variant's metrics differ"
    shown = json.loads(project.run("dvc", "metrics", "diff", "--json", "main").stdout)
    assert list(shown) == ["reports/headline.json"]
    assert 1 <= len(shown["reports/headline.json"]) <= 20
    for revision in ("main", "newer", "main"):
        project.run("git", "checkout", "--quiet", revision)
        project.run("dvc", "checkout", "--force", "--quiet")
        assert not project.jobs("snakemake")
        assert not project.jobs("dvc", "repro")


def test_experiments_reuse_what_was_computed(project: Project) -> None:
    ran = project.jobs("dvc", "exp", "run", "--temp", "--name", "damped", "-S", "++compress.gptq.damp=0.5")
    assert ran == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, **REPORT}
    project.run("dvc", "exp", "run", "--queue", "--name", "six", "-S", "compress.rtn.bits=[8,6,4]")
    project.run("dvc", "exp", "run", "--queue", "--name", "resampled", "-S", "analyze.resamples=300")
    assert project.jobs("dvc", "exp", "run", "--run-all", "--jobs", "2") == {
        "compress": 1,
        "evaluate": 1,
        "analyze": 2,
        "analyze.report": 2,
    }
    shown = project.run("dvc", "exp", "show", "--csv").stdout
    for name in ("damped", "six", "resampled"):
        assert name in shown
    changed = json.loads(project.run("dvc", "exp", "diff", "HEAD", "damped", "--json").stdout)
    assert changed["params"]["params.yaml"]["compress.gptq.damp"]["new"] == 0.5
    assert any("gptq-3" in key for key in changed["metrics"]["reports/headline.json"])
    columns = shown.splitlines()[0].split(",")
    assert {"kl.gptq-3.prose", "pick", "protocol"} <= set(columns)
    assert not [name for name in columns if "[" in name], "what rich would take for markup"
    said = project.run("hemorrhage", "compare").stdout
    assert "of 4 revisions are in reports/compare.csv" in said, "HEAD and three experiments"
    table = pd.read_csv(project.root / "reports/compare.csv")
    assert table["revision"].iloc[0] == "HEAD"
    assert set(table["revision"]) == {"HEAD", "damped", "six", "resampled"}
    damped = table[(table["revision"] == "damped") & (table["metric"] == "kl_mean") & table["part"].isna()]
    assert set(damped[damped["difference"] != 0]["variant"]) == {"gptq-3"}
    assert not project.jobs("snakemake"), "the workspace is as it was"
