"""What an interrupt leaves: Snakemake's marks of unfinished outputs mean nothing, since outputs are whole or absent.

Nothing is computed: manifests stand for the outputs, and Snakemake says what it would run.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from pathlib import Path

import pytest

from hemorrhage.study.kinds import KINDS, PAGE_FILES, ROWS_FILES
from hemorrhage.study.plan import Plan
from tests.project import Project

pytestmark = pytest.mark.end_to_end

SCREENING = {"screen_references", "screens", "brackets", "fresh_tasks", "confirmation_references", "confirmations"}

TRAINED = {"training_texts", "tokenizers", "trainings"}
ABSENT = {"sibling_models", "benchmarks", "gradients", "harness", "code_tasks", "served", *SCREENING, *TRAINED}
"""Kinds of which the quick profile asks for none."""

TARGETS = ("calibrated", "compressed", "evaluated", "decoded", "mitigated", "analyzed", "all")


@pytest.fixture
def plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of the project, whose outputs are all there but one evaluation and the report."""
    monkeypatch.chdir(project.root)
    for left in (".snakemake/incomplete", "reports"):
        shutil.rmtree(left, ignore_errors=True)
    plan = Plan.read()
    for kind in KINDS:
        for manifest in map(Path, plan.manifests(kind)):
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_text("{}")
    Path(plan.manifest("evaluations", "rtn-8")).unlink()
    return plan


def mark(output: str) -> None:
    """Say that a job was begun that makes ``output``, as Snakemake does."""
    file = Path(".snakemake/incomplete", urlsafe_b64encode(output.encode()).decode())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"external_jobid": None}))


def would_run(project: Project, *target: str) -> Counter[str]:
    """Rule -> number of jobs that Snakemake would run."""
    said = project.run("snakemake", "--dry-run", "--", *target).stdout
    table = said.partition("Job stats:")[2].partition("\n\n")[0]
    return Counter({rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)})


@pytest.mark.parametrize("kind", sorted({*KINDS} - ABSENT))
def test_a_mark_on_what_is_there_runs_nothing_and_drops_nothing(project: Project, plan: Plan, kind: str) -> None:
    assert plan.manifests(kind)
    for manifest in plan.manifests(kind):
        mark(manifest)
    assert would_run(project, "all") == {
        "evaluate": 1,
        "rows": 1,
        "page": 1,
        "failures": 1,
        "reported": 1,
        "all": 1,
        "total": 6,
    }


def test_marks_on_what_is_there_are_removed_and_one_on_what_is_missing_stays(project: Project, plan: Plan) -> None:
    """Or `snakemake --report` would refuse the study."""
    for manifest in (plan.manifest("evaluations", "base"), plan.manifest("evaluations", "rtn-8")):
        mark(manifest)
    project.run("snakemake", "--dry-run", "--quiet")
    left = [urlsafe_b64decode(file.name).decode() for file in Path(".snakemake/incomplete").iterdir()]
    assert left == [plan.manifest("evaluations", "rtn-8")]


def test_a_run_needs_no_home(project: Project, plan: Plan) -> None:
    """Nobody can make a folder below /proc, root included."""
    nowhere = ("env", "-u", "XDG_CACHE_HOME", "HOME=/proc/nowhere")
    done = project.run(*nowhere, "snakemake", "--dry-run", "--", plan.manifest("evaluations", "rtn-8"))
    assert "evaluate" in done.stdout
    project.run(*nowhere, "env", "PYTHONPATH=src", sys.executable, "-m", "hemorrhage.cli", "costs")


@pytest.mark.parametrize("target", TARGETS)
def test_targets_of_dvc_come_to_their_end_with_marks_everywhere(project: Project, plan: Plan, target: str) -> None:
    for kind in KINDS:
        for manifest in plan.manifests(kind):
            mark(manifest)
    for name in (plan.rows, plan.page, f"{plan.page}.sound"):
        mark(f".snakemake/current/{name}")
    rules = {
        "evaluated": {"evaluate": 1, "evaluated": 1, "total": 2},
        "analyzed": {"evaluate": 1, "rows": 1, "page": 1, "analyzed": 1, "total": 4},
        "all": {"evaluate": 1, "rows": 1, "page": 1, "failures": 1, "reported": 1, "all": 1, "total": 6},
    }
    assert would_run(project, target) == rules.get(target, {})


@pytest.mark.parametrize(
    ("status", "made_at", "said", "ends_with"),
    [
        (0, "this plan", "open reports/index.html", 0),
        (1, "this plan", "open reports/index.html", 2),
        (1, "another plan", "", 2),
        (0, "another plan", "", 2),
    ],
)
def test_make_report_names_the_page_of_this_plan_alone_and_keeps_the_failure(
    project: Project, plan: Plan, status: int, made_at: str, said: str, ends_with: int
) -> None:
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    for name in (*ROWS_FILES, *PAGE_FILES):
        (reports / name).touch()
    page = plan.page if made_at == "this plan" else "000000000000"
    (reports / "provenance.json").write_text(json.dumps({"address": plan.rows, "page": page}))
    locked = b"".join(Path(name).read_bytes() for name in ("requirements.txt", "requirements-uv.txt", "pyproject.toml"))
    ready = Path(".venv", f"ready-{hashlib.sha256(locked).hexdigest()[:16]}")
    (ready.parent / "bin").mkdir(parents=True, exist_ok=True)
    ready.touch()
    command = ready.parent / "bin" / "snakemake"
    command.write_text(f"#!/bin/sh\nexit {status}\n")
    command.chmod(0o755)
    environment = {**project.environment, "PYTHONPATH": "src"}
    done = subprocess.run(["make", "report"], env=environment, capture_output=True, text=True, check=False)
    shutil.rmtree(".venv")
    assert done.stdout.strip() == said
    assert done.returncode == ends_with, "make itself ends with 2 where a command fails"
