"""Why a test may be skipped: what no fixture can make. Every other reason fails the run.

The hooks are tests/conftest.py's; ``-rs`` in pyproject.toml lists what was skipped at the end of a run.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

ALLOWED = {
    r"no GPU": "a GPU",
    r"fails only where there is no accelerator": "no GPU: a peer's fault that shows on processors alone",
    r"no chromium": "a browser",
    r"programs need ": "bubblewrap",
    r"programs can.t be isolated here: (?!the sandbox has a hole)": "a kernel that lets bubblewrap work",
    r"the extra gguf \(cyllama\) is not installed": "the optional extra gguf",
    r"could not import '(bitsandbytes|hqq|mlx|torchao)": "a peer that is compared with where it is installed",
    r"no /dev/full here": "Linux's /dev/full",
}
"""How a reason begins, as a regular expression -> what the test needs."""

_refused: dict[str, str] = {}
"""Test -> its reason, of those that were skipped for another one."""


def allowed(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    return any(re.match(beginning, reason) for beginning in ALLOWED)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why a test or a file of tests was skipped; None where it was not. What is expected to fail was not skipped."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(told).removeprefix("Skipped: ")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take note of a skipped test."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Take note of a skipped file."""
    _note(report)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = reason_of(report)
    if reason is not None and not allowed(reason):
        _refused[report.nodeid] = reason


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run with a skip that nothing excuses has failed; workers of xdist leave that to the process above them."""
    if _refused and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the tests that must not be skipped."""
    if _refused:
        terminalreporter.section("skipped for no allowed reason (tests/skips.py)", red=True)
        for test, reason in sorted(_refused.items()):
            terminalreporter.line(f"{test}: {reason}")
