"""The invalidation contract through the real Snakemake and DVC, on the quick profile, counting jobs that ran.

One story in order, in one project: each test leaves the project as it found it, computed and committed.
A job is counted when its shell line starts: a ``bash`` in front of the real one writes its step down. The rule that
tells of failed variants makes nothing and isn't counted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.end_to_end

VARIANTS = ("rtn-8", "rtn-4", "gptq-3", "awq-4", "awq_sham-4", "wanda-0.5", "shortgpt-0.2", "llama_pro-0.2")


class Project:
    """A copy of the working tree with the quick profile, a git repository of its own, and a job counter."""

    def __init__(self, root: Path, journal: Path, tools: Path) -> None:
        self.root = root
        self.journal = journal
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **os.environ,
            "PATH": path,
            "JOURNAL": str(journal),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.environment.pop("PYTHONPATH", None)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output is shown when it fails."""
        done = subprocess.run(command, cwd=self.root, env=self.environment, text=True, capture_output=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def jobs(self, *command: str, check: bool = True) -> Counter[str]:
        """Run a command and count the jobs it ran, by step."""
        self.journal.write_text("")
        self.run(*command, check=check)
        return self.counted()

    def counted(self) -> Counter[str]:
        """Jobs since the journal was last emptied."""
        return Counter(line.removeprefix("hemorrhage.") for line in self.journal.read_text().split())

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands exactly once in a file."""
        path = self.root / file
        content = path.read_text()
        assert content.count(old) == 1, f"{old!r} in {file}"
        path.write_text(content.replace(old, new))

    def commit(self, message: str) -> None:
        """Commit everything git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def restore(self) -> None:
        """Back to the last commit, outputs included."""
        self.run("git", "checkout", "--quiet", ".")
        self.run("dvc", "checkout", "--force", "--quiet")

    def metrics(self) -> dict:
        """reports/metrics.json."""
        return json.loads((self.root / "reports/metrics.json").read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Project:
    root = tmp_path_factory.mktemp("study") / "project"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, files.split("\0")):
        # What the repository holds of another study stays behind.
        if (ROOT / name).is_file() and not name.startswith(("reports/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    tools = root.parent / "tools"
    tools.mkdir()
    counter = tools / "bash"
    counter.write_text(
        f"""#!/bin/sh
case "$*" in
*"hemorrhage.plan failed"*) ;;
*"step() "*) printf '%s' "$*" | grep -o ' hemorrhage[.][a-z_.]*' | head -n 1 >> "$JOURNAL" ;;
esac
exec {shutil.which("bash")} "$@"
"""
    )
    counter.chmod(0o755)
    made = Project(root, root.parent / "journal", tools)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    made.run("git", "config", "user.name", "test")
    made.run("git", "config", "user.email", "test@example.org")
    made.edit("params/quick.yaml", "../shared/models/stories260K", str(tiny))
    made.run(sys.executable, "-m", "hemorrhage.overlay", "params/quick.yaml")
    made.commit("quick profile")
    return made


@pytest.fixture(autouse=True)
def left_as_found(project: Project) -> Iterator[None]:
    """A test that changed a file gives the next one the committed state, also when it failed."""
    yield
    if (project.root / "dvc.lock").is_file() and project.run("git", "status", "--porcelain").stdout:
        project.run("git", "checkout", "--quiet", "--force", "main")
        project.run("dvc", "checkout", "--force", "--quiet")


def test_cold_run_makes_everything(project: Project) -> None:
    ran = project.jobs("snakemake")
    assert ran == {
        "models": 1, "data": 1, "data.probes": 1, "calibrate": 1, "compress": 8,
        "evaluate.reference": 1, "evaluate": 9, "decode": 2, "mitigate": 1, "analyze": 1,
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
    for name in ("params.yaml", "Snakefile", "src/hemorrhage/compress/gptq.py"):
        path = project.root / name
        path.write_bytes(path.read_bytes())
    assert not project.jobs(*command)


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_a_variants_parameter_reruns_that_variant(project: Project, command: tuple[str, ...]) -> None:
    before = project.metrics()
    project.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.1,")
    assert project.jobs(*command) == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, "analyze": 1}
    after = project.metrics()
    assert after != before
    project.restore()
    assert project.metrics() == before
    assert not project.jobs(*command)


def test_an_evaluation_parameter_reruns_no_compression(project: Project) -> None:
    project.edit("params.yaml", "windows: 12", "windows: 10")
    assert project.jobs("dvc", "repro") == {"evaluate.reference": 1, "evaluate": 9, "mitigate": 1, "analyze": 1}


def test_a_new_variant_of_a_sweep_runs_alone(project: Project) -> None:
    project.edit("params.yaml", "bits: [8, 4]", "bits: [8, 6, 4]")
    assert project.jobs("snakemake") == {"compress": 1, "evaluate": 1, "analyze": 1}


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_code_of_one_method_reruns_its_variants_and_a_comment_nothing(
    project: Project, command: tuple[str, ...]
) -> None:
    method = project.root / "src/hemorrhage/compress/wanda.py"
    source = method.read_text()
    method.write_text(source + "\n# a comment\n")
    assert not project.jobs(*command)
    method.write_text(source + "\nEDITED = True\n")
    assert project.jobs(*command) == {"compress": 1, "evaluate": 1, "analyze": 1}


def test_kill_in_the_middle_of_a_write_leaves_nothing_half_made(project: Project) -> None:
    project.edit("params.yaml", "epoch: 1", "epoch: 2")
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
    total = sum({"models": 1, "data": 1, "data.probes": 1, "calibrate": 1, "compress": 8,
                 "evaluate.reference": 1, "evaluate": 9, "decode": 2, "mitigate": 1,
                 "analyze": 1}.values())  # fmt: skip
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
    assert project.counted() == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, "analyze": 1}


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
    assert clone.jobs("dvc", "repro") == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, "analyze": 1}


def test_an_older_commit_and_back_has_nothing_to_do(project: Project) -> None:
    project.run("git", "checkout", "--quiet", "-b", "newer")
    project.edit("params.yaml", "method: gptq, bits: [3],", "method: gptq, bits: [3], damp: 0.4,")
    project.jobs("dvc", "repro")
    project.commit("another damping")
    difference = json.loads(project.run("dvc", "metrics", "diff", "--json", "main").stdout)
    changed = difference["reports/metrics.json"]
    assert changed
    assert all("gptq-3" in key for key in changed), "only the changed variant's metrics differ"
    for revision in ("main", "newer", "main"):
        project.run("git", "checkout", "--quiet", revision)
        project.run("dvc", "checkout", "--force", "--quiet")
        assert not project.jobs("snakemake")
        assert not project.jobs("dvc", "repro")


def test_experiments_reuse_what_was_computed(project: Project) -> None:
    ran = project.jobs("dvc", "exp", "run", "--temp", "--name", "damped", "-S", "++compress.gptq.damp=0.5")
    assert ran == {"compress": 1, "evaluate": 1, "decode": 1, "mitigate": 1, "analyze": 1}
    project.run("dvc", "exp", "run", "--queue", "--name", "six", "-S", "compress.rtn.bits=[8,6,4]")
    project.run("dvc", "exp", "run", "--queue", "--name", "resampled", "-S", "analyze.resamples=300")
    assert project.jobs("dvc", "exp", "run", "--run-all", "--jobs", "2") == {"compress": 1, "evaluate": 1, "analyze": 2}
    shown = project.run("dvc", "exp", "show", "--csv").stdout
    for name in ("damped", "six", "resampled"):
        assert name in shown
    changed = json.loads(project.run("dvc", "exp", "diff", "HEAD", "damped", "--json").stdout)
    assert changed["params"]["params.yaml"]["compress.gptq.damp"]["new"] == 0.5
    assert any("gptq-3" in key for key in changed["metrics"]["reports/metrics.json"])
    assert not project.jobs("snakemake"), "the workspace is as it was"


def test_a_failing_variant_is_a_row_with_its_reason_and_the_rest_finishes(project: Project) -> None:
    method = project.root / "src/hemorrhage/compress/wanda.py"
    method.write_text(method.read_text() + '\ndef alter(*arguments, **named):\n    raise ValueError("planted fault")\n')
    ran = project.jobs("snakemake", check=False)
    assert ran == {"compress": 1, "evaluate": 1, "analyze": 1}
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
