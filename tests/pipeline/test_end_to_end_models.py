"""A study of several models through the real Snakemake: what they share is made once, each has a page, all have one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from tests.project import REPORT, Project

pytestmark = pytest.mark.end_to_end

STUDY = """
compress: null
decode: {strategies: null}
---
model: {source: models}
models:
  plain: {source: path, path: PLAIN}
  scaled: {source: path, path: SCALED}
compress:
  rtn: {method: rtn, bits: [8, 4, 3, 2], group_size: channel, symmetric: false}
evaluate: {window: 64, windows: 6, tasks: [agreement], diagnostics: {windows: 0, window: 64}}
decode: {variants: [], strategies: {greedy: {strategy: greedy}}, open_ended: []}
mitigate: {variants: []}
"""


@pytest.fixture(scope="module")
def study(project: Project, tiny: Path) -> Project:
    """The project with a study of two models, which has run."""
    scaled = project.root / "scaled"
    shutil.copytree(tiny, scaled)
    weights = {name: value * 1.1 if value.ndim > 1 else value for name, value in load_file(scaled / FILE).items()}
    save_file(weights, scaled / FILE, {"format": "pt"})
    (project.root / "study.yaml").write_text(STUDY.replace("PLAIN", str(tiny)).replace("SCALED", "scaled"))
    project.run("git", "checkout", "--quiet", "params.yaml")
    project.run("hemorrhage", "params", "study.yaml")
    project.first = project.jobs("snakemake", "--cores", "2")  # type: ignore[attr-defined]
    return project


FILE = "model.safetensors"


def test_what_does_not_depend_on_the_model_is_made_once(study: Project) -> None:
    jobs = study.first  # type: ignore[attr-defined]
    assert jobs["data.tasks.probes"] == 1
    assert jobs["models"] == 2
    assert jobs["compress"] == 8
    assert jobs["evaluate"] == 10
    assert {step: jobs[step] for step in REPORT} == {"analyze": 2, "analyze.report": 2}
    assert jobs["analyze.family"] == jobs["analyze.family.page"] == 1


def test_each_model_has_its_page_and_all_have_one(study: Project) -> None:
    reports = study.root / "reports"
    assert all((reports / name / "index.html").is_file() for name in (".", "plain", "scaled"))
    page = (reports / "index.html").read_text()
    assert '<a href="plain/index.html">plain</a>' in page
    rows = pd.read_parquet(reports / "hemorrhage.parquet")
    assert set(rows["model"]) == {"plain", "scaled"}
    assert set(study.metrics()) == {"plain", "scaled"}


def test_there_is_nothing_to_do_then(study: Project) -> None:
    assert not study.jobs("snakemake", "--cores", "2")
    planned = study.run("hemorrhage", "plan").stdout
    assert "pages of models             2/2 current" in planned
    assert "nothing is missing" in study.run("hemorrhage", "costs").stdout


def test_a_model_more_costs_itself_alone(study: Project) -> None:
    study.edit("params.yaml", "  scaled: {", "  again: {source: path, path: scaled}\n  scaled: {")
    jobs = study.jobs("snakemake", "--cores", "2")
    # The same weights lie where they did: its numbers alone are another model's.
    assert {step: number for step, number in jobs.items() if number} == {
        "analyze": 1,
        "analyze.report": 1,
        "analyze.family": 1,
        "analyze.family.page": 1,
    }


def test_a_command_about_one_model_says_so(study: Project) -> None:
    done = study.run("hemorrhage", "export", "rtn-4", "out", check=False)
    assert done.returncode == 64
    assert done.stderr.strip().endswith("this asks of one model, and `models` has several")


def test_a_failure_names_its_model(study: Project) -> None:
    manifest = next((study.root / "data/checkpoints/rtn-2").glob("*/manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "failure": "no luck"}))
    done = study.run("hemorrhage", "failed", check=False)
    assert done.returncode == 1
    assert "/rtn-2 failed: no luck" in done.stderr
