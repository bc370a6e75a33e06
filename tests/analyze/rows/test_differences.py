"""Differences of two studies: the interval by hand and by simulation, and their order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.rows import differences
from hemorrhage.tools import compare
from tests.analyze.rows.made import row


def test_the_interval_of_a_difference() -> None:
    low, high = differences.interval((0.2, 0.15, 0.3), (0.5, 0.4, 0.55))
    assert low == pytest.approx(0.3 - math.sqrt(0.1**2 + 0.1**2))
    assert high == pytest.approx(0.3 + math.sqrt(0.05**2 + 0.05**2))
    assert all(math.isnan(end) for end in differences.interval((1, math.nan, math.nan), (2, math.nan, math.nan)))


def test_it_covers_the_true_difference_and_is_wide_where_both_saw_the_same_windows() -> None:
    rng = np.random.default_rng(0)
    covered = {0.0: 0, 0.8: 0}
    for shared in covered:
        for _ in range(400):
            common = rng.normal(0, 1, 40)
            sides = [math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(0, 1, 40) for _ in range(2)]
            sides[1] = sides[1] + 0.3
            halves = [2.02 * side.std(ddof=1) / math.sqrt(40) for side in sides]
            means = [side.mean() for side in sides]
            ends = [(mean, mean - half, mean + half) for mean, half in zip(means, halves, strict=True)]
            low, high = differences.interval(ends[0], ends[1])
            covered[shared] += low <= 0.3 <= high
    assert 0.92 <= covered[0.0] / 400 <= 0.98
    assert covered[0.8] / 400 > 0.98


def test_differences_come_surest_first_and_say_what_they_rest_on() -> None:
    a = pd.DataFrame(
        [
            row("x", "kl_mean[w1]", 0.10, 0.02),
            row("y", "kl_mean[w1]", 0.10, 0.02),
            row("z", "kl_mean[w1]", 0.10, 0.02),
            row("x", "disk_bytes", 100),
            row("w", "kl_mean[w1]", 0.10, 0.02),
            row("v", "kl_mean[w1]", 0.10, 0.02),
        ]
    )
    b = pd.DataFrame(
        [
            row("x", "kl_mean[w1]", 0.11, 0.02),
            row("y", "kl_mean[w1]", 0.30, 0.02, data="other"),
            row("z", "kl_mean[w1]", 0.10, 0.02),
            row("x", "disk_bytes", 90),
            row("w", "kl_mean[w1]", math.nan, math.nan, status="failed", reason="it broke"),
            row("v", "kl_mean[w2]", 0.2, 0.01),
        ]
    )
    found, lost = differences.differences(a, b)
    assert [(one.variant, one.metric, one.certain, one.paired) for one in found] == [
        ("x", "disk_bytes", True, False),
        ("y", "kl_mean[w1]", True, False),
        ("x", "kl_mean[w1]", False, False),
        ("z", "kl_mean[w1]", False, False),
    ]
    assert found[-1].difference == 0
    assert {(one.variant, one.side, one.reason) for one in lost} == {
        ("w", "A", "it broke"), ("v", "A", "no such row"), ("v", "B", "no such row"),
    }  # fmt: skip
    assert compare._protocols(lost)
    assert {(one.variant, one.side): one.estimate for one in lost}["v", "B"] == 0.2, "a number of one side is told"


def test_all_metrics_of_whole_models_are_compared() -> None:
    metrics = (
        "kl_p99[w1]",
        "perplexity_word[w1]",
        "x{engine=vllm}",
        "x{layer=1}",
        "x{layer=1,head=0}",
        "x{position=1}",
    )
    a, b = (pd.DataFrame([row("x", metric, value, 0.1) for metric in metrics]) for value in (1.0, 2.0))
    compared, lost = differences.differences(a, b)
    assert {one.metric for one in compared} == set(metrics[:3])
    assert not lost


def test_changed_keys() -> None:
    assert differences.list_changes({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}) == [
        ("a.c", [1], [2]), ("d", 2, None), ("e", None, 3),
    ]  # fmt: skip


def test_decoding_under_two_protocols_is_not_compared() -> None:
    """The same task, strategy and name: with a chat template and without one are two measurements."""
    plain, chat = "items=24 new_tokens=3 chat=none shots=0", "items=24 new_tokens=3 chat=ab12cd34 shots=0"
    a, b = (
        pd.DataFrame([row("x", "accuracy", value, 0.01, family="decode", method="greedy", protocol=protocol)])
        for value, protocol in ((0.2, plain), (0.6, chat))
    )
    found, lost = differences.differences(a, b)
    assert found == []
    assert {(each.side, each.reason) for each in lost} == {("A", "no such row"), ("B", "no such row")}
    (same,), _ = differences.differences(a, b.assign(protocol=plain))
    assert same.difference == pytest.approx(0.4)
