"""A project of a user: the working tree in a git repository of its own, where commands run and jobs are counted.

A job is counted when its shell line starts: a ``bash`` in front of the real one writes its step down. The rule that
tells of failed variants makes nothing and isn't counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

REPORT = {"analyze": 1, "analyze.report": 1}
"""The jobs that make reports/: the numbers, and the page."""


class Project:
    """A copy of the working tree with the quick profile, a git repository of its own, and a job counter."""

    def __init__(self, root: Path, journal: Path, tools: Path) -> None:
        self.root = root
        self.journal = journal
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **os.environ,
            "PATH": path,
            "JOURNAL": str(journal),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # `make test` would hand its own flags to a make that a test starts, which then prints its directories.
        for name in ("PYTHONPATH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
            self.environment.pop(name, None)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output is shown when it fails."""
        done = subprocess.run(command, cwd=self.root, env=self.environment, text=True, capture_output=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def jobs(self, *command: str, check: bool = True) -> Counter[str]:
        """Run a command and count the jobs it ran, by step."""
        self.journal.write_text("")
        self.run(*command, check=check)
        return self.counted()

    def counted(self) -> Counter[str]:
        """Jobs since the journal was last emptied."""
        return Counter(line.removeprefix("hemorrhage.") for line in self.journal.read_text().split())

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands exactly once in a file of the project."""
        replace(self.root / file, old, new)

    def commit(self, message: str) -> None:
        """Commit everything git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def restore(self) -> None:
        """Back to the last commit, outputs included."""
        self.run("git", "checkout", "--quiet", ".")
        self.run("dvc", "checkout", "--force", "--quiet")

    def metrics(self) -> dict[str, Any]:
        """reports/metrics.json."""
        return self._json("reports/metrics.json")

    def provenance(self) -> dict[str, Any]:
        """reports/provenance.json."""
        return self._json("reports/provenance.json")

    def _json(self, file: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / file).read_text())
        return content


def copy(root: Path, tiny: Path) -> None:
    """The working tree at ``root``, without what it holds of another study; its quick profile names the tiny model."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("reports/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    replace(root / "params/quick.yaml", "tests/tiny/scaled", str(tiny))


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text that stands exactly once in a file."""
    content = path.read_text()
    assert content.count(old) == 1, f"{old!r} in {path}"
    path.write_text(content.replace(old, new))


def make(root: Path, tiny: Path) -> Project:
    """The working tree with the quick profile and the tiny model, committed in a repository of its own at ``root``."""
    copy(root, tiny)
    tools = root.parent / "tools"
    tools.mkdir()
    counter = tools / "bash"
    counter.write_text(
        f"""#!/bin/sh
case "$*" in
*"hemorrhage.study failed"*) ;;
*"step() "*) printf '%s' "$*" | grep -o ' hemorrhage[.][a-z_.]*' | head -n 1 >> "$JOURNAL" ;;
esac
exec {shutil.which("bash")} "$@"
"""
    )
    counter.chmod(0o755)
    made = Project(root, root.parent / "journal", tools)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    made.run("git", "config", "user.name", "test")
    made.run("git", "config", "user.email", "test@example.org")
    made.run(sys.executable, "-m", "hemorrhage.cli", "params", "quick")
    made.commit("quick profile")
    return made
