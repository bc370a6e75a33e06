"""A job: a step in a process of its own, its threads, its end and what it used."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hemorrhage.runtime.service import client, job, server
from tests.runtime.service.running import LIGHT, command, environment

COUNT = """
import json, os, sys
from pathlib import Path
import numpy as np, torch
torch.randn(600, 600) @ torch.randn(600, 600)
np.random.randn(600, 600) @ np.random.randn(600, 600)
tasks = len(os.listdir("/proc/self/task"))
Path("count.json").write_text(json.dumps({"torch": torch.get_num_threads(), "inside": tasks}))
"""


@pytest.mark.parametrize("served", [False, True])
def test_a_job_of_one_thread_computes_with_one(folder: Path, served: bool) -> None:
    Path("count.py").write_text(COUNT)
    process = None
    if served:
        with server.listen(Path(client.SOCKET)) as listener, Path("service.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", LIGHT.replace("'json',", "'json', 'torch'"), str(listener.fileno())],
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=log, env=environment(),
            )  # fmt: skip
    threads = {}
    for granted in (1, 2):
        env = environment(**dict.fromkeys(server.THREADS, str(granted)))
        subprocess.run(command("usage.tsv", "count"), env=env, check=True)
        threads[granted] = json.loads(Path("count.json").read_text())
    if process:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        assert "refused" not in Path("service.log").read_text()
    assert threads[1] == {"torch": 1, "inside": 1}, "no pool of threads stands beside the job's own"
    assert threads[2]["torch"] == 2
    assert threads[2]["inside"] > 1


def alone(arguments: list[str], module: str) -> subprocess.CompletedProcess[str]:
    """A step in a process of its own, which writes ``usage.tsv``."""
    command = [sys.executable, "-m", "hemorrhage.runtime.service.job", "usage.tsv", module, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('no such text')", 1, "no such text"),
        ("raise ValueError('broken')", 1, "ValueError: broken"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_it_ends_as_the_interpreter_would(folder: Path, program: str, status: int, said: str) -> None:
    Path("ending.py").write_text(program)
    ran = alone([], "ending")
    assert ran.returncode == status
    assert said in ran.stderr
    header, row = Path("usage.tsv").read_text().splitlines()
    assert header.split("\t") == list(job.COLUMNS)
    assert all(float(value) > 0 for value in row.split("\t"))


def test_what_it_used_is_what_it_spent_and_held(folder: Path) -> None:
    Path("spend.py").write_text(
        "import time\nheld = bytearray(300 * 2**20)\nbegan = time.process_time()\n"
        "while time.process_time() - began < 0.5: pass\n"
    )
    assert alone([], "spend").returncode == 0
    header, row = (line.split("\t") for line in Path("usage.tsv").read_text().splitlines())
    used = dict(zip(header, map(float, row), strict=True))
    assert used["s"] >= 0.5
    assert used["cpu_time"] >= 0.5 + used["start_up"] - 0.1
    # The kernel hands a parent's peak down to what it starts.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 300 < used["max_rss"] < max(1500, 1.1 * own)


def test_imports_are_measured_by_the_outermost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("hemorrhage.runtime.service.job.time.process_time", lambda: next(clock))
    measured = job.Imports()
    assert measured.seconds == 0

    def importing(name: str) -> str:
        if name == "outer":
            measured("inner")
        return name

    monkeypatch.setattr(measured, "original", importing)
    assert measured("outer") == "outer"
    assert measured.seconds == 1, "from 1 to 2: what is imported within took no reading"
