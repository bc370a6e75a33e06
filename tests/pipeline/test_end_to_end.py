"""The invalidation contract through the real Snakemake and DVC, on the quick profile, counting jobs that ran.

One story in order, in one project: each test leaves the project as it found it, computed and committed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from tests.project import REPORT, Project

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("left_as_found")]

VARIANTS = ("rtn-8", "rtn-4", "gptq-3", "awq-4", "awq_shuffled-4", "wanda-0.5", "shortgpt-0.2", "llama_pro-0.2")


def test_cold_run_makes_everything(project: Project) -> None:
    ran = project.jobs("snakemake")
    assert ran == {
        "models": 1, "data.texts": 1, "data.tasks.probes": 1, "calibrate": 1, "compress": 8,
        "evaluate.reference": 1, "evaluate": 9, "decode": 2, "mitigate": 1, **REPORT,
    }  # fmt: skip
    rows = pd.read_parquet(project.root / "reports/hemorrhage.parquet")
    assert set(rows.variant) == {"base", *VARIANTS}
    assert not (rows.status == "failed").any()
    assert (rows.environment != "").all()
    assert (rows.protocol != "").all()
    assert rows[rows.variant != "base"].seed.notna().all()
    measured = rows[rows.metric.str.startswith("perplexity")]
    assert (measured.low <= measured.estimate).all()
    assert (measured.estimate <= measured.high).all()
    assert measured.protocol.str.startswith("window=128 ").all()
    assert (measured.data.str.len() == 64).all(), "each measurement carries the hash of its text"
    assert (
        "<svg" in (project.root / "reports/index.html").read_text()
        or "plotly" in (project.root / "reports/index.html").read_text()
    )


def test_snakemakes_own_report_shows_the_page_and_the_tables(project: Project) -> None:
    project.run("snakemake", "--report", str(project.root.parent / "report.zip"))
    with zipfile.ZipFile(project.root.parent / "report.zip") as content:
        shown = {Path(name).name: name for name in content.namelist() if "/raw/" in name}
        page = content.read(shown["index.html"])
    assert page == (project.root / "reports/index.html").read_bytes()
    assert {"metrics.json", "curves.csv", "thresholds.csv", "front.csv", "claims.json"} <= set(shown)


def test_dvc_records_what_snakemake_made(project: Project) -> None:
    assert not project.jobs("dvc", "repro", "--quiet")
    project.commit("computed")


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_nothing_changed_nothing_runs_within_ten_seconds(project: Project, command: tuple[str, ...]) -> None:
    taken = []
    for _ in range(2):  # The machine may be busy with something else for a while.
        began = time.monotonic()
        assert not project.jobs(*command)
        taken.append(time.monotonic() - began)
    assert min(taken) < 10


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_touching_and_saving_again_runs_nothing(project: Project, command: tuple[str, ...]) -> None:
    for folder in ("data", "src", "rules", "reports"):
        for file in (project.root / folder).rglob("*"):
            file.touch()
    for name in ("params.yaml", "Snakefile", "src/hemorrhage/compress/methods/weight_quantization/gptq.py"):
        path = project.root / name
        path.write_bytes(path.read_bytes())
    assert not project.jobs(*command)


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_a_variants_parameter_reruns_that_variant(project: Project, command: tuple[str, ...]) -> None:
    before = project.metrics()
    project.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.1,")
    assert project.jobs(*command) == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, **REPORT}
    after = project.metrics()
    assert after != before
    project.restore()
    assert project.metrics() == before
    assert not project.jobs(*command)


def test_an_evaluation_parameter_reruns_no_compression(project: Project) -> None:
    project.edit("params.yaml", "windows: 12", "windows: 10")
    assert project.jobs("dvc", "repro") == {"evaluate.reference": 1, "evaluate": 9, "mitigate": 1, **REPORT}


def test_a_new_variant_of_a_sweep_runs_alone(project: Project) -> None:
    project.edit("params.yaml", "bits: [8, 4]", "bits: [8, 6, 4]")
    assert project.jobs("snakemake") == {"compress": 1, "evaluate": 1, **REPORT}


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_code_of_one_method_reruns_its_variants_and_a_comment_nothing(
    project: Project, command: tuple[str, ...]
) -> None:
    method = project.root / "src/hemorrhage/compress/methods/unstructured_pruning/wanda.py"
    source = method.read_text()
    method.write_text(source + "\n# a comment\n")
    assert not project.jobs(*command)
    method.write_text(source + "\nEDITED = True\n")
    assert project.jobs(*command) == {"compress": 1, "evaluate": 1, **REPORT}


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_a_colour_draws_the_page_alone(project: Project, command: tuple[str, ...]) -> None:
    template = project.root / "src/hemorrhage/analyze/report/templates/report.css.j2"
    template.write_text(template.read_text() + "\n/* another red */\n")
    numbers = (project.root / "reports/hemorrhage.parquet").stat().st_mtime_ns
    assert project.jobs(*command) == {"analyze.report": 1}
    assert "another red" in (project.root / "reports/index.html").read_text()
    assert (project.root / "reports/hemorrhage.parquet").stat().st_mtime_ns == numbers
    project.run("dvc", "repro", "--quiet")
    assert not project.jobs(*command)


def test_a_page_that_was_not_drawn_leaves_its_numbers_and_is_drawn_later(project: Project) -> None:
    project.edit("params.yaml", "resamples: 200", "resamples: 250")
    page = project.root / "src/hemorrhage/analyze/report/page.py"
    source = page.read_text()
    page.write_text(source + '\n\ndef render(study):\n    raise MemoryError("planted")\n')
    assert project.jobs("snakemake", check=False) == REPORT
    assert project.provenance()["spec"]["resamples"] == 250
    assert "page" not in project.provenance()
    page.write_text(source)
    assert project.jobs("snakemake") == {"analyze.report": 1}
    assert "page" in project.provenance()
    assert not project.jobs("snakemake")


def test_kill_in_the_middle_of_a_write_leaves_nothing_half_made(project: Project) -> None:
    project.edit("params.yaml", "cache_version: 1", "cache_version: 2")
    project.journal.write_text("")
    run = subprocess.Popen(
        ["snakemake", "--cores", "1"], cwd=project.root, env=project.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    checkpoints = project.root / "data/checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("*/*.part-*")):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    half = list(checkpoints.glob("*/*.part-*"))
    assert half, "killed in the middle of a write"
    started = sum(project.counted().values())
    total = sum({"models": 1, "data.texts": 1, "data.tasks.probes": 1, "calibrate": 1, "compress": 8,
                 "evaluate.reference": 1, "evaluate": 9, "decode": 2, "mitigate": 1, **REPORT}.values())  # fmt: skip
    again = project.jobs("snakemake")
    assert sum(again.values()) == total - (started - 1), "only the killed job and what had not started"
    assert not project.jobs("snakemake")
    project.run("dvc", "repro", "--quiet")
    assert not list(checkpoints.glob("*/*.part-*"))


def test_of_two_runs_at_once_one_stops_with_a_clear_message(project: Project) -> None:
    project.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.2,")
    project.journal.write_text("")
    first = subprocess.Popen(
        ["snakemake"], cwd=project.root, env=project.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not project.counted():
        assert first.poll() is None
        time.sleep(0.05)
    second = project.run("snakemake", check=False)
    assert second.returncode != 0
    assert "another run is at work in this folder" in second.stdout + second.stderr
    assert first.wait() == 0
    assert project.counted() == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, **REPORT}


def test_a_failing_variant_is_a_row_with_its_reason_and_the_rest_finishes(project: Project) -> None:
    method = project.root / "src/hemorrhage/compress/methods/unstructured_pruning/wanda.py"
    planted = '\ndef fail(*arguments: object) -> None:\n    raise ValueError("planted fault")\n'
    method.write_text(f"{method.read_text()}\n{planted}\n\nMETHOD = Method(METHOD.info, Settings, fail)\n")
    ran = project.jobs("snakemake", check=False)
    assert ran == {"compress": 1, "evaluate": 1, **REPORT}
    for command, status in (("snakemake",), 1), (("dvc", "repro"), 0):
        project.journal.write_text("")
        done = project.run(*command, check=False)
        assert done.returncode == status
        assert not project.counted()
        if status:
            assert "wanda-0.5 failed: ValueError: planted fault" in done.stdout + done.stderr
    rows = pd.read_parquet(project.root / "reports/hemorrhage.parquet")
    failed = rows[rows.status == "failed"]
    assert set(failed.variant) == {"wanda-0.5"}
    assert failed.reason.str.contains("planted fault").all()
    others = rows[rows.variant == "rtn-4"]
    assert "failed" not in set(others.status)
    assert (others[others.metric.str.startswith("kl_mean[")].status == "ok").all()
    assert "planted fault" in (project.root / "reports/index.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bits: [8, 4]", "bits: [8, 9]", "compress.rtn.bits"),
        (
            "corpora: [prose]",
            "corpora: [poetry]",
            "evaluate.corpora: 'poetry' is unknown; allowed: prose, code",
        ),
        ("windows: 12", "windows: 1000000", "corpus prose has"),
    ],
)
def test_bad_params_stop_before_any_work(project: Project, old: str, new: str, message: str) -> None:
    project.edit("params.yaml", old, new)
    project.journal.write_text("")
    done = project.run("snakemake", check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not project.counted()
