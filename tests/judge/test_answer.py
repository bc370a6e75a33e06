"""The answer of a judgement: the worst file decides; JSON and JUnit say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from hemorrhage.analyze.budget import INSIDE, OUTSIDE, UNMEASURED, UNRESOLVED, Check
from hemorrhage.judge import answer
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES

CHECKED = answer.Interval(0.06, 0.05, 0.07, "prose")
CHECK = Check("kl", "kl_mean[w64]", "prose", 0.1, INSIDE, "", 0.05, 0.04, 0.06, 0.06, 64)
ROW = answer.Row(
    file="m-Q8_0",
    storage="GGUF Q8_0",
    bytes=144_811_360,
    bits=8.59,
    kl=answer.Interval(0.05, 0.04, 0.06, "prose"),
    kl_p99=answer.Interval(0.4, 0.3, 0.5, "code"),
    same_top1=answer.Interval(0.97, 0.96, 0.98, "prose"),
    perplexity=answer.Interval(1.011, 1.0, 1.02, "prose"),
    flips=None,
    status=YES,
    reason="nearest its limit is kl",
    checks=[CHECK],
)
OUT = replace(ROW, file="m-Q2_K", status=NO, checks=[replace(CHECK, answer=OUTSIDE)], reason="kl: outside")
BROKEN = replace(ROW, file="x", status=NOT_MEASURED, kl=None, bytes=None, bits=None, reason="truncated", checks=[])


def test_the_worst_file_decides() -> None:
    unsure = replace(ROW, status=CANNOT_TELL)
    assert answer.status_of([ROW, ROW]) == YES
    assert answer.status_of([ROW, unsure]) == CANNOT_TELL
    assert answer.status_of([unsure, BROKEN]) == NOT_MEASURED
    assert answer.status_of([BROKEN, OUT]) == NO


def test_the_table_has_a_line_for_each_file_and_a_note_for_each_that_is_not_inside() -> None:
    lines = answer.as_table([ROW, OUT, replace(BROKEN, warnings=["look"])], {"kl": 0.1}).splitlines()
    assert lines[0].split() == [
        *["file", "format", "MB", "bits", "KL", "KL", "p99", "same", "top-1", "perplexity", "flips", "inside"]
    ]
    first = lines[1].split()
    assert first[:4] == ["m-Q8_0", "GGUF", "Q8_0", "144.8"]
    assert first[-4:] == ["%", "x1.011", "–", "yes"]
    assert lines[5:] == ["inside: every bound below kl 0.1", "m-Q2_K: kl: outside", "x: truncated", "x: look"]


def test_an_engine_is_a_note_and_in_the_json() -> None:
    measured = answer.InEngine("llama.cpp b1", CHECKED, answer.Interval(0.01, 0, 0.02, "prose"), ROW.same_top1)
    row = replace(ROW, engines=[measured, answer.InEngine("vLLM 1", gap="not exported: no such kernel")])
    assert answer.as_table([row], {"kl": 0.1}).splitlines()[-2:] == [
        "m-Q8_0 in llama.cpp b1: KL 0.06 (0.05 to 0.07), of that the engine 0.01 (0 to 0.02), same top-1 97.0 %",
        "m-Q8_0 in vLLM 1: not exported: no such kernel",
    ]
    first, second = cast(Any, row.as_json()["engines"])
    assert first["added"] == {"value": 0.01, "low": 0, "high": 0.02, "dataset": "prose"}
    assert (second["kl"], second["gap"]) == (None, "not exported: no such kernel")


def test_a_server_tells_the_ends_of_a_kl() -> None:
    low, high = answer.Interval(0.01, 0.009, 0.011, "prose"), answer.Interval(0.03, 0.02, 0.04, "prose")
    said = answer.InEngine("m at host", same_top1=ROW.same_top1, kl_low=low, kl_high=high)
    assert (
        str(said) == "in m at host: KL at least 0.01 (0.009 to 0.011), at most 0.03 (0.02 to 0.04), same top-1 97.0 %"
    )
    unbounded = replace(said, kl_high=None, same_top1=None)
    assert str(unbounded) == "in m at host: KL at least 0.01 (0.009 to 0.011), nothing bounds it"


@pytest.mark.parametrize(
    ("low", "high", "decides"),
    [
        ((0.01, INSIDE), (0.03, INSIDE), "high"),
        ((0.01, INSIDE), (0.09, UNRESOLVED), "high"),
        ((0.2, OUTSIDE), (0.3, OUTSIDE), "low"),
        ((0.11, UNRESOLVED), (0.3, OUTSIDE), "low"),
        ((0.01, INSIDE), (0.3, OUTSIDE), "whole"),
    ],
)
def test_the_end_that_decides_is_checked(low: tuple[float, str], high: tuple[float, str], decides: str) -> None:
    """Limit 0.1: inside by the upper end, outside by the lower, and open where the limit is between them."""
    whole = replace(CHECK, estimate=None, answer=UNMEASURED, reason="an interval")
    first, second = (replace(CHECK, estimate=value, answer=said, reason=said) for value, said in (low, high))
    checked = answer._by_ends(whole, first, second)
    if decides != "whole":
        assert checked == {"low": first, "high": second}[decides]
    else:
        assert (checked.answer, checked.reason) == (
            UNRESOLVED,
            "the server's likeliest tokens leave it open from 0.01 to 0.3: ask for a larger top",
        )
    assert answer._by_ends(whole, None, None) is whole
    assert answer._by_ends(whole, replace(CHECK, estimate=0.01), None).answer == UNRESOLVED


def test_json_has_every_number_and_check() -> None:
    content = answer.as_json([ROW, OUT], "base", {"kl": 0.1}, "0123")
    assert (content["answer"], content["base"], content["address"]) == ("no", "base", "0123")
    first = ROW.as_json()
    assert first["kl"] == {"value": 0.05, "low": 0.04, "high": 0.06, "dataset": "prose"}
    assert first["flips"] is None
    assert first["checks"] == [CHECK.as_json()]


def test_junit_counts_failures_and_errors() -> None:
    suite = ElementTree.fromstring(answer.as_junit([ROW, OUT, BROKEN], "base").encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    cases = suite.findall("testcase")
    assert [len(case) for case in cases] == [0, 1, 1]
    failure, error = cases[1][0], cases[2][0]
    assert (failure.tag, failure.get("type"), failure.get("message")) == ("failure", "no", "kl: outside")
    assert (error.tag, error.get("message")) == ("error", "truncated")
