"""What every step starts with."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = (
    "import logging, os; from hemorrhage.runtime.step import start; start();"
    "logging.getLogger('hemorrhage.x').info('told');"
    "print(os.environ['TOKENIZERS_PARALLELISM'], os.environ['HF_HUB_OFFLINE'])"
)


def started(**env: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**kept, **env}, capture_output=True, text=True, check=True
    )


def test_a_step_logs_to_standard_error_and_asks_no_network() -> None:
    ran = started()
    assert ran.stdout.split() == ["false", "1"]
    assert ran.stderr.endswith(" hemorrhage.x: told\n")


def test_what_the_user_has_set_stays() -> None:
    assert started(TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="0").stdout.split() == ["true", "0"]
