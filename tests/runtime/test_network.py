"""Fetching over a network that is lost for a while, or for good."""

from __future__ import annotations

import types
from typing import Any

import httpx
import pytest

from hemorrhage.runtime import network


class Answer(Exception):  # noqa: N818 - what a server says is no error by name
    """A server's answer with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = types.SimpleNamespace(status_code=status)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr("hemorrhage.runtime.network.time.sleep", made.append)
    return made


def failing(*errors: Exception) -> Any:
    """A fetch that raises ``errors`` in turn, and gives "there" behind them."""
    left = list(errors)

    def fetch() -> str:
        if left:
            raise left.pop(0)
        return "there"

    return fetch


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("reset"), True),
        (TimeoutError("late"), True),
        (httpx.ConnectTimeout("late"), True),
        (Answer(429), True),
        (Answer(503), True),
        (Answer(404), False),
        (Answer(401), False),
        (ValueError("no such data set"), False),
        (FileNotFoundError("no such file"), False),
    ],
)
def test_what_counts_as_a_lost_network(error: Exception, expected: bool) -> None:
    assert network.lost(error) is expected


def test_a_network_that_comes_back_is_asked_again(pauses: list[float]) -> None:
    assert network.fetch_persistently("x", failing()) == "there"
    assert pauses == []
    assert network.fetch_persistently("x", failing(Answer(500), TimeoutError("late"))) == "there"
    assert pauses == list(network.PAUSES[:2])


def test_a_network_that_stays_lost_names_what_was_wanted(pauses: list[float]) -> None:
    errors = [ConnectionError(f"lost\n{number}") for number in range(len(network.PAUSES) + 1)]
    with pytest.raises(ConnectionError, match=r"^org/set could not be fetched \(ConnectionError: lost 3\); run again"):
        network.fetch_persistently("org/set", failing(*errors))
    assert pauses == list(network.PAUSES)


def test_what_waiting_does_not_help_against_passes_through(pauses: list[float]) -> None:
    with pytest.raises(Answer, match="status 404"):
        network.fetch_persistently("x", failing(Answer(404)))
    errors = [TimeoutError("late")] * len(network.PAUSES)
    with pytest.raises(Answer, match="status 403"):
        network.fetch_persistently("x", failing(*errors, Answer(403)))
    assert pauses == list(network.PAUSES)


def test_a_data_set_is_asked_for_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network.dataset("org/set", "main", "test", "abc")
    network.dataset("org/set", None, "train", "abc", files="en/*.gz")
    assert asked == [
        (("org/set", "main"), {"split": "test", "revision": "abc"}),
        (("org/set",), {"data_files": {"train": "en/*.gz"}, "split": "train", "revision": "abc"}),
    ]
