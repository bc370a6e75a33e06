"""What every step starts with, and how it ends: in one line where its input is to blame, else with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from hemorrhage.runtime import step
step.start()
raise {error}
"""


def run(error: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(error=error)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("step.InputError('model.path: no\\n  model')", "error: model.path: no model\n"),
        ("ConnectionError('a/b could not be fetched')", "error: a/b could not be fetched\n"),
        ("PermissionError(13, 'Permission denied', '/x/y')", "error: /x/y: Permission denied\n"),
        (
            "OSError(28, 'No space left on device')",
            "error: the disk is full; make room and run again: what is finished",
        ),
    ],
)
def test_what_the_user_can_change_is_one_line(error: str, line: str) -> None:
    done = run(error)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", ["ValueError('ours')", "BrokenPipeError(32, 'Broken pipe')"])
def test_a_mistake_of_this_package_shows_where_it_is(error: str) -> None:
    done = run(error)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


STARTED = (
    "import logging, os; from hemorrhage.runtime.step import start; start();"
    "logging.getLogger('hemorrhage.x').info('told');"
    "print(os.environ['TOKENIZERS_PARALLELISM'], os.environ['HF_HUB_OFFLINE'])"
)


def started(**env: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
    }
    return subprocess.run(
        [sys.executable, "-c", STARTED], env={**kept, **env}, capture_output=True, text=True, check=True
    )


def test_a_step_logs_to_standard_error_and_asks_no_network() -> None:
    ran = started()
    assert ran.stdout.split() == ["false", "1"]
    assert ran.stderr.endswith(" hemorrhage.x: told\n")


def test_what_the_user_has_set_stays() -> None:
    assert started(TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="0").stdout.split() == ["true", "0"]
