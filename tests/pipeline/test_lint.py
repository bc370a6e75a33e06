"""``snakemake --lint`` has nothing to say of the workflow but that no rule names a container or a conda environment.

None is named because jobs run in the environment that Snakemake itself runs in, whose packages requirements.txt pins by
hash: an image beside it would be a second list of the same packages, or, as the one that stood here, hold none of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.project import copy

WITHOUT_CONTAINER = "Specify a conda environment or container for each rule.:"


def test_lint_finds_nothing_else(tmp_path: Path, tiny: Path) -> None:
    copy(tmp_path, tiny)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["snakemake", "--lint"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.removeprefix("    * ") for line in done.stderr.splitlines() if line.startswith("    * ")]
    rules = [line for line in done.stderr.splitlines() if line.startswith("Lints for rule")]
    assert len(rules) > 15, done.stderr
    assert found == [WITHOUT_CONTAINER] * len(rules), done.stderr
