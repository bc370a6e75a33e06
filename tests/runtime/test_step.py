"""A step ends in one line where its input is to blame, and with a traceback where this package is."""

from __future__ import annotations

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
