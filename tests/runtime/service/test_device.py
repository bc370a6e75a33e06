"""Each job holds a GPU of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hemorrhage.runtime.service import device
from tests.runtime.service.running import environment, until

HOLD = """
import os, sys, time
from pathlib import Path
from hemorrhage.runtime.service import device
device.assign()
Path(sys.argv[1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while not Path("over").exists():
    time.sleep(0.01)
"""


def test_each_job_holds_a_gpu_of_its_own_and_the_third_waits_for_one(folder: Path) -> None:
    env = environment(CUDA_VISIBLE_DEVICES="4,7", TMPDIR=str(folder))
    env.pop("HEMORRHAGE_DEVICE", None)

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", HOLD, name], env=env)

    first = start("first")
    until(lambda: Path("first").exists() and Path("first").read_text())
    second = start("second")
    until(lambda: Path("second").exists() and Path("second").read_text())
    assert (Path("first").read_text(), Path("second").read_text()) == ("4", "7")
    third = start("third")
    time.sleep(0.3)
    assert not Path("third").exists()
    first.kill()
    first.wait()
    until(lambda: Path("third").exists() and Path("third").read_text())
    assert Path("third").read_text() == "4", "a killed job's lock ends with it"
    Path("over").touch()
    assert second.wait(10) == third.wait(10) == 0


def test_a_single_device_that_slurm_gave_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMORRHAGE_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    device.assign()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert not device._held
