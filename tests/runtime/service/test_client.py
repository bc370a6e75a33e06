"""The client: it hands its step to the server or runs it itself, and its end is the job's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hemorrhage.runtime.service import client, server
from tests.runtime.service.running import command, environment, gone, nap, pids, talk, until


def test_without_a_server_the_client_runs_the_step(folder: Path) -> None:
    done, facts = talk(3)
    assert done.returncode == 3
    assert not facts["served"]
    assert Path("usage.tsv").read_text().startswith("s\t")
    # The socket of a run that was killed.
    server.listen(Path(client.SOCKET)).close()
    assert talk()[1]["served"] is False


def test_a_killed_client_takes_its_job_along(light: subprocess.Popen[bytes]) -> None:
    process = nap("with a child")
    job = pids()[-1][0]
    children = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    assert children, "the job has a child of its own"
    process.kill()
    process.wait()
    until(lambda: gone(job) and all(gone(int(child)) for child in children))
    assert talk()[1]["served"], "the server goes on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_job_and_its_end_is_the_clients(
    light: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    process = nap()
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == -number
    assert (b"KeyboardInterrupt" in stderr) == (number == signal.SIGINT)
    assert gone(pids()[-1][0])


def test_a_job_killed_for_memory_is_no_success(light: subprocess.Popen[bytes]) -> None:
    process = nap()
    os.kill(pids()[-1][0], signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_job_whose_watcher_dies_is_begun_again_alone(light: subprocess.Popen[bytes]) -> None:
    process = nap()
    job, watcher = pids()[-1]
    os.kill(watcher, signal.SIGKILL)
    until(lambda: len(pids()) == 2)
    assert gone(job), "never two at a time"
    Path("nap.wait").unlink()
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert b"begins again" in stderr


def test_a_step_runs_on_the_processor_unless_it_was_granted_a_gpu(light: subprocess.Popen[bytes]) -> None:
    for option, where in (([], "cpu"), (["--gpu=0"], "cpu"), (["--direct"], "cpu"), (["--gpu=1"], None)):
        code = "import json, os; json.dump(os.environ.get('HEMORRHAGE_DEVICE'), open('device.json', 'w'))"
        Path("where.py").write_text(code)
        subprocess.run(command(*option, "usage.tsv", "where"), env=environment(), check=True, capture_output=True)
        assert json.loads(Path("device.json").read_text()) == where
