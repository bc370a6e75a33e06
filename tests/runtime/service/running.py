"""Clients, jobs and servers that the tests of the service start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hemorrhage
from hemorrhage.runtime.service import client, server

SOURCE = Path(hemorrhage.__file__).parent.parent


LIGHT = "from hemorrhage.runtime.service import server; server.LIBRARIES = ('json',); server.main()"
"""A server that is there at once: what it does with a job does not depend on what it has imported."""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (*server.THREADS, "PYTEST_CURRENT_TEST")}
    return {**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **more}


def start_light(env: dict[str, str]) -> subprocess.Popen[bytes]:
    with server.listen(Path(client.SOCKET)) as listener, Path("service.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", LIGHT, str(listener.fileno())],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=log, env=env,
        )  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-IS", client.__file__, *arguments]


def talk(status: int = 0, env: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    Path("facts.json").unlink(missing_ok=True)
    done = subprocess.run(
        command("usage.tsv", "talk", str(status), "a b"), env=env or environment(), capture_output=True, text=True
    )
    return done, json.loads(Path("facts.json").read_text())


def nap(*more: str) -> subprocess.Popen[bytes]:
    """A client whose job has begun."""
    before = pids()
    process = subprocess.Popen(command("usage.tsv", "nap", "nap", *more), env=environment(), stderr=subprocess.PIPE)
    until(lambda: len(pids()) > len(before))
    return process


def pids() -> list[tuple[int, int]]:
    """Of each job that began to nap: its process, and its parent."""
    lines = Path("nap").read_text().splitlines() if Path("nap").exists() else []
    words = [line.split() for line in lines if line.count(" ") == 1]
    return [(int(process), int(parent)) for process, parent in words]


def until(true: Callable[[], object]) -> None:
    for _ in range(1500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
