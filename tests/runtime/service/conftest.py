"""Fixtures of this folder's tests."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.service.running import environment, start_light

TALK = """
import json, os, sys
from pathlib import Path
print("out", sys.argv[1:], flush=True)
print("err", file=sys.stderr)
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
Path("facts.json").write_text(json.dumps({
    "served": "import server" in parent, "threads": os.environ["OMP_NUM_THREADS"], "name": __name__,
    "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "group": os.getpgrp() == os.getpid(),
}))
sys.exit(int(sys.argv[1]))
"""


NAP = """
import os, sys, time
from pathlib import Path
from multiprocessing import Process
def nap(): time.sleep(60)
if len(sys.argv) > 2: Process(target=nap, daemon=True).start()
with Path(sys.argv[1]).open("a") as stream: stream.write(f"{os.getpid()} {os.getppid()}\\n")
while Path(sys.argv[1]).with_suffix(".wait").exists(): time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """In the background of a shell processes are started with SIGINT ignored, and pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, with two modules in it."""
    monkeypatch.chdir(tmp_path)
    Path("talk.py").write_text(TALK)
    Path("nap.py").write_text(NAP)
    Path("nap.wait").touch()
    return tmp_path


@pytest.fixture
def light(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start_light(environment())
    yield process
    Path("nap.wait").unlink(missing_ok=True)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)
