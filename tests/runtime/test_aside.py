"""What runs aside gives what it would give in this process."""

from __future__ import annotations

import os

import pytest

from hemorrhage.runtime.aside import THREADS, Aside


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_result_and_an_error_come_back(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, threads)
    # More than a pipe holds: the child waits until somebody reads.
    aside = Aside(lambda count: (os.getpid(), b"x" * count), 300_000)
    process, text = aside.result()
    assert len(text) == 300_000
    assert (process != os.getpid()) == (threads == "2")
    with pytest.raises(ValueError, match="no such corpus"):
        Aside(_fail).result()


def _fail() -> None:
    raise ValueError("no such corpus")


def test_a_killed_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "2")
    aside = Aside(os._exit, 9)
    with pytest.raises(RuntimeError, match="killed"):
        aside.result()
