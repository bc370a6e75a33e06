"""The loop of a worker; tests/engines/test_client.py has it run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hemorrhage.engines import client
from hemorrhage.engines.workers import host
from tests.engines import fake_worker


def test_an_error_is_one_line_that_says_who_is_to_blame() -> None:
    assert host.failure(ValueError("a file\nis missing")) == {"error": "a file is missing", "class": "input"}
    assert host.failure(RuntimeError("no\nmemory")) == {"error": "RuntimeError: no memory", "class": "engine"}
    assert host.failure(MemoryError()) == {"error": "MemoryError: MemoryError", "class": "engine"}


def test_memory_is_that_of_the_group() -> None:
    assert host.peak_bytes(watcher=0) > 10**6


def test_a_worker_whose_client_is_gone_already_ends() -> None:
    command = [sys.executable, "-I", str(client.HOST), fake_worker.__file__, str(os.getpid() + 1)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "the process that started this worker is gone" in done.stderr


def test_a_file_is_imported_without_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise AssertionError\n")
    (tmp_path / "worker.py").write_text("import numpy\nvalue = numpy.float32(1)\n")
    assert host.load_file(tmp_path / "worker.py", "imported_for_a_test").value == 1
