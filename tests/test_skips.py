"""A test may be skipped only for what no fixture can make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hemorrhage.sandbox import runner
from tests.conftest import ROOT
from tests.skips import allowed


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("no GPU", True),
        ("no chromium", True),
        ("programs need bwrap (Debian package bubblewrap, 0.8 or newer), which is not installed", True),
        ("the extra gguf (cyllama) is not installed", True),
        ("could not import 'bitsandbytes.functional': No module named 'bitsandbytes'", True),
        ("programs can't be isolated here: no user namespaces", True),
        ("programs can't be isolated here: the sandbox has a hole: failed", False),
        ("no mirror beside the repository", False),
        ("stories260K is not there", False),
        ("could not import 'llmcompressor': No module named 'llmcompressor'", False),
        ("there is no GPU", False),
        ("", False),
    ],
)
def test_reasons(reason: str, expected: bool) -> None:
    assert allowed(reason) is expected


def test_what_the_sandbox_lacks_is_allowed() -> None:
    reason = runner.missing()
    assert reason is None or allowed(reason)


TESTS = """
import pytest
def test_runs(): pass
def test_excused(): pytest.skip("no GPU")
@pytest.mark.xfail
def test_fails_as_expected(): raise ValueError
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "more", ["", 'pytest.skip("too lazy", allow_module_level=True)', 'def test_lazy(): pytest.skip("too lazy")']
)
def test_a_run_with_another_reason_fails_and_names_it(tmp_path: Path, workers: int, more: str) -> None:
    names = "pytest_collectreport, pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary"
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.skips import {names}"
    )
    (tmp_path / "test_fine.py").write_text(TESTS)
    (tmp_path / "test_more.py").write_text(f"import pytest\n{more}\ndef test_last(): pass\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-n", str(workers), "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == (1 if more else 0), ran.stdout
    assert ("skipped for no allowed reason" in ran.stdout) == bool(more)
    assert (": too lazy" in ran.stdout) == bool(more)
    assert "no GPU" in ran.stdout
