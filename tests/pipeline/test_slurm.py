"""A small pipeline through a real SLURM cluster of one node: ``make test-slurm`` (root, Debian, some ten minutes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests import slurm_cluster
from tests.project import copy

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3000)]

SLOW = """

def _slow(*arguments):
    import time

    time.sleep(150)
    return alter(*arguments)


METHOD = Method(METHOD.info, Settings, _slow)
"""
"""Appended to a method: longer than the first attempt may take."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    reason = slurm_cluster.missing()
    if reason:
        pytest.fail(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def project(tmp_path: Path, tiny: Path, cluster: None) -> Path:
    """A copy of the tree with five variants of the tiny model, whose jobs may take one minute at first."""
    copy(tmp_path, tiny)
    run(tmp_path, sys.executable, "-m", "hemorrhage.cli", "params", "quick")
    small = tmp_path / "params/small.yaml"
    small.write_text(
        "compress: {gptq: null, shortgpt: null, llama_pro: null}\ndecode: {variants: []}\nmitigate: {variants: []}\n",
        encoding="utf-8",
    )
    run(tmp_path, sys.executable, "-m", "hemorrhage.cli", "params", str(small))
    return tmp_path


def run(project: Path, *command: str) -> None:
    """Run a command in the project; it has to succeed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project / "src")}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"


def submitted() -> pd.DataFrame:
    """All jobs that SLURM knows of: what they asked for, and how they ended."""
    columns = {"jobid": "id", "state": "state", "timelimit": "limit", "minmemory": "memory",
               "tres-per-job": "gpus", "comment": "comment"}  # fmt: skip
    text = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--Format", ",".join(f"{name}:|" for name in columns)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = [[value.strip() for value in line.split("|")][: len(columns)] for line in text.splitlines()]
    return pd.DataFrame(rows, columns=list(columns.values()))


def test_a_killed_job_is_retried_with_more_time_and_the_report_is_made(project: Path) -> None:
    method = project / "src/hemorrhage/compress/methods/unstructured_pruning/wanda.py"
    method.write_text(method.read_text() + SLOW)
    file = project / "src/hemorrhage/study/costs/coefficients.json"
    costs = json.loads(file.read_text())
    costs["safety"]["least_minutes"] = 1
    file.write_text(json.dumps(costs))
    run(
        project, "snakemake", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "5",
        "--latency-wait", "5",
    )  # fmt: skip
    rows = pd.read_parquet(project / "reports/hemorrhage.parquet")
    assert {"base", "rtn-8", "rtn-4", "awq-4", "awq_shuffled-4", "wanda-0.5"} == set(rows.variant)
    assert not (rows.status == "failed").any()
    jobs = submitted()
    print(jobs.to_string())
    slow = jobs[jobs.comment.str.contains("compress") & jobs.state.isin(["TIMEOUT"])]
    assert len(slow) >= 1, "killed by its limit"
    retried = jobs[jobs.comment.str.contains("compress") & (jobs.state == "COMPLETED") & (jobs.limit != "1:00")]
    assert len(retried) >= 1, "with more time the second time"
    assert retried.limit.isin(["3:00", "9:00"]).all()
    assert jobs.memory.str.fullmatch(r"\d+(\.\d+)?[MG]").all()
    assert len(jobs[jobs.comment.str.contains("inputs")]) == 1, "the text and the task were submitted together"
    assert not (jobs.gpus.str.contains("gpu")).any()


def test_on_a_gpu_partition_steps_that_run_the_model_ask_for_one(project: Path) -> None:
    before = set(submitted().id)
    run(
        project, "snakemake", "--profile", "profiles/slurm", "--config", "gpu=1", "--latency-wait", "5",
        "--slurm-init-seconds-before-status-checks", "5", "--", "calibrated",
    )  # fmt: skip
    jobs = submitted()
    jobs = jobs[~jobs.id.isin(before)]
    print(jobs.to_string())
    asked = jobs[jobs.gpus.str.contains("gpu")]
    assert set(asked.comment.str.extract(r"rule_(\w+?)_wildcards", expand=False).dropna()) <= {"calibrate"}
    assert len(asked) == 1, "the calibration, and neither base nor texts nor tasks"
