"""The tests' side, without a sandbox: a thread answers as a program would, or as it should not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest

from hemorrhage.sandbox.judge import Gone, Line, ProgramError, Remote, judge
from hemorrhage.sandbox.values import write


@pytest.fixture
def pipes() -> Iterator[Callable[[bytes], Line]]:
    """A line to a program that has sent what it will, and ends."""
    opened: list[int] = []

    def line(sent: bytes) -> Line:
        replies, replies_end = os.pipe()
        requests_end, requests = os.pipe()
        opened.extend((replies, requests_end, requests))

        def send() -> None:
            with os.fdopen(replies_end, "wb") as end:
                end.write(sent)

        Thread(target=send).start()
        return Line(requests, replies)

    yield line
    for file in opened:
        os.close(file)


def answers(*values: Any) -> bytes:
    return b"".join(write({"value": value}) for value in (None, ["object", 0, True, "function"], *values))


def order(source: str, given: str = "") -> dict[str, Any]:
    return {"source": source, "asked": ["f"], "given": given}


def test_tests_see_values(pipes: Callable[[bytes], Line]) -> None:
    judge(pipes(answers(2, ["list", 3])), order("assert f(1) == 2\nassert f(2) == [3]"))
    with pytest.raises(AssertionError):
        judge(pipes(answers(2, 3)), order("assert f(1) == 2\nassert f(2) == [3]"))


def test_what_is_given_is_the_tests_own(pipes: Callable[[bytes], Line]) -> None:
    given = "def f(x): return 0\ndef double(x): return 2 * x"
    judge(pipes(answers(6)), order("assert f(1) == double(3)", given))


def test_an_object_equals_itself_alone(pipes: Callable[[bytes], Line]) -> None:
    line = pipes(b"")
    one: Any
    same: Any
    one, same = Remote(line, 3, True, "A"), Remote(line, 3, True, "A")
    assert one == one
    assert one != same
    assert one != 3
    assert repr(one) == "<A>"
    assert bool(one)
    for act in (lambda: one < 1, lambda: abs(one), lambda: one + 1, lambda: bool(Remote(line, 0, None, "array"))):
        with pytest.raises(TypeError):
            act()
    with pytest.raises(AttributeError):
        _ = one.__len__
    with pytest.raises(TypeError, match="can't cross"):
        one(lambda: 1)


@pytest.mark.parametrize(
    "sent",
    [b"[]\n", b"no\n", b"{}\n", b'{"value": ["object"]}\n', b'{"value": ["no"]}\n', b"[" * 100_000 + b"\n", b"\xff\n"],
)
def test_what_is_no_answer_is_an_error(pipes: Callable[[bytes], Line], sent: bytes) -> None:
    with pytest.raises(ProgramError) as error:
        pipes(sent).hear()
    assert error.value.args == ("error", error.value.args[1])
    assert "no value" in error.value.args[1]


def test_no_one_passes_by_saying_so(pipes: Callable[[bytes], Line]) -> None:
    for said, meant in {"passed": "error", "timeout": "error", "blocked": "blocked", "failed": "failed"}.items():
        with pytest.raises(ProgramError) as error:
            pipes(write({"status": said, "detail": "it"})).hear()
        assert error.value.args == (meant, "it")


def test_a_program_that_ends_is_gone(pipes: Callable[[bytes], Line]) -> None:
    with pytest.raises(Gone):
        pipes(b'{"value": 1').hear()
