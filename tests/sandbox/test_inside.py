"""How code that nobody has read ended."""

from __future__ import annotations

import errno

import pytest

from hemorrhage.sandbox.inside import ended


class OddError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AssertionError("no"), ("failed", "AssertionError: no")),
        (MemoryError(), ("memory", "MemoryError: ")),
        (PermissionError(errno.EPERM, "not permitted"), ("blocked", "PermissionError: [Errno 1] not permitted")),
        (FileNotFoundError(errno.ENOENT, "gone"), ("error", "FileNotFoundError: [Errno 2] gone")),
        (RuntimeError("can't start new thread"), ("blocked", "RuntimeError: can't start new thread")),
        (SystemExit(0), ("error", "SystemExit: 0")),
        (ValueError("a" * 100), ("error", f"ValueError: {'a' * 28}")),
        (OddError(), ("error", "OddError")),
    ],
)
def test_status_and_detail(error: BaseException, expected: tuple[str, str]) -> None:
    assert ended(error, 40) == expected
