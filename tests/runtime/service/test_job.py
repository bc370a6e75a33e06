"""A job: a step in a process of its own, its threads, its end and what it used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hemorrhage.runtime.service import client, server
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
def test_a_job_of_one_thread_computes_with_one(folder, served: bool) -> None:
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
        process.stdin.close()
        process.wait(10)
        assert "refused" not in Path("service.log").read_text()
    assert threads[1] == {"torch": 1, "inside": 1}, "no pool of threads stands beside the job's own"
    assert threads[2]["torch"] == 2
    assert threads[2]["inside"] > 1
