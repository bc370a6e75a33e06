"""The lock of a run goes with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hemorrhage.runtime.lock import holding

HOLD = "import sys, time; from pathlib import Path; from hemorrhage.runtime.lock import hold; hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "locks" / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode != 0
        assert "BlockingIOError" in second.stderr
        first.kill()
        first.wait()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as third:
        assert third.stdout is not None
        assert third.stdout.readline() == "held\n"
        third.kill()


def test_a_lock_of_a_block_is_given_back_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "a.lock"
    for _ in range(2):
        with holding(file), pytest.raises(BlockingIOError), holding(file):
            pass
