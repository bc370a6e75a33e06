"""Checks against a budget: intervals, bounds of many variants, and how often they are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemorrhage.analyze import budget
from hemorrhage.analyze.stats import bootstrap


def row(estimate: float, low: float, high: float, n: int = 16, **fields: Any) -> dict[str, Any]:
    content = {"metric": "kl_mean[tag]", "dataset": "prose", "status": "ok", "reason": ""}
    return {**content, "estimate": estimate, "low": low, "high": high, "n": n, **fields}


def wider(together: int, n: int, freedom: float) -> float:
    return float(stats.t.ppf(1 - 0.05 / together, freedom) / stats.t.ppf(0.975, n - 1))


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [((0.05, 0.03, 0.07), "inside"), ((0.2, 0.15, 0.25), "outside"), ((0.09, 0.05, 0.13), "not resolved")],
)
def test_an_interval_against_a_limit(numbers: tuple[float, float, float], answer: str) -> None:
    found = budget.check("kl", row(*numbers), 0.1, 0.95, 1)
    assert found.answer == answer
    assert found.bound == pytest.approx(numbers[2]), "of one variant, the bound is the interval's own end"


def test_how_many_windows_would_tell() -> None:
    found = budget.check("kl", row(0.09, 0.05, 0.13), 0.1, 0.95, 1)
    assert found.needed == 16 * 16, "a distance a quarter of the half-width takes sixteen times the windows"
    assert "about 256 windows needed, 16 measured" in str(found)
    assert budget.check("kl", row(0.1, 0.05, 0.13), 0.1, 0.95, 1).reason == "it lies on the limit"


def test_perplexity_is_judged_as_a_log_and_told_as_a_ratio() -> None:
    found = budget.check("perplexity", row(0.05, 0.04, 0.06), 1.1, 0.95, 1)
    assert found.answer == "inside"
    assert found.high == pytest.approx(math.exp(0.06))
    assert found.used == pytest.approx(0.06 / math.log(1.1))
    named = replace(found, metric="ln_perplexity_ratio[w64]")
    assert str(named).startswith("perplexity_ratio[w64] on prose: 1.051 (1.041 to 1.062;")


def test_bounds_of_many_variants_are_wider() -> None:
    assert budget.widening(0.95, 42, 96, "items") == pytest.approx(wider(42, 96, 95))
    assert budget.widening(0.95, 10, 16, "windows") == pytest.approx(wider(10, 16, 7.5))
    assert budget.widening(0.95, 1, 16, "windows") == budget.widening(0.95, 2, 16, "items") == 1
    assert budget.check("kl", row(0.08, 0.07, 0.09), 0.1, 0.95, 1).answer == "inside"
    assert budget.check("kl", row(0.08, 0.07, 0.095), 0.1, 0.95, 40).answer == "not resolved"


@pytest.mark.parametrize("status", ["failed", "undefined"])
def test_what_was_not_measured_is_never_inside(status: str) -> None:
    table = pd.DataFrame(
        [
            {"variant": "a", "family": "f", **row(0.01, 0.0, 0.02)},
            {"variant": "a", "family": "f", **row(math.nan, math.nan, math.nan, 0, metric="mean_flips", status=status,
             dataset="all tasks", reason="because")},
        ]
    )  # fmt: skip
    checks = budget.judge(table, ["a"], {"kl": 0.1, "flips": 0.1, "accuracy_loss_points": 10}, 0.95, 1)["a"]
    assert [check.answer for check in checks] == ["inside", "not measured", "not measured"]
    assert [check.reason for check in checks] == ["", "because", "it was not measured"]


def test_each_category_is_checked_but_for_those_with_few_windows() -> None:
    whole = {"variant": "a", "family": "f", **row(0.01, 0.0, 0.02)}
    hard = {**whole, **row(0.2, 0.15, 0.25, 8, metric="kl_mean{category=hard (x)}[tag]")}
    few = {**whole, **row(0.9, 0.8, 1.0, 7, metric="kl_mean{category=few}[tag]")}
    bucket = {**whole, **row(0.9, 0.8, 1.0, 8, metric="kl_mean{position=1}[tag]")}
    table = pd.DataFrame([whole, hard, few, bucket])
    checks = budget.judge(table, ["a"], {"kl": 0.1}, 0.95, 1)["a"]
    assert [(each.dataset, each.answer) for each in checks] == [("prose", "inside"), ("prose (hard (x))", "outside")]
    assert budget.few_windows(table) == {"prose (few)": 7}


def test_a_suite_at_chance_is_silent_where_another_speaks_and_a_failed_one_is_not() -> None:
    flips = {"variant": "a", "family": "f", "metric": "mean_flips"}
    spoken = {**row(0.01, 0.0, 0.02), **flips, "dataset": "all tasks"}
    silent = {
        **row(math.nan, math.nan, math.nan, 0, status="undefined", reason="at chance"),
        **flips,
        "dataset": "code",
    }
    for status, answers in (("undefined", ["inside"]), ("failed", ["inside", "not measured"])):
        checks = budget.judge(pd.DataFrame([spoken, {**silent, "status": status}]), ["a"], {"flips": 0.1}, 0.95, 1)
        assert [check.answer for check in checks["a"]] == answers


def test_of_variants_on_the_limit_hardly_ever_any_is_called_inside() -> None:
    """Twenty variants whose true damage is the limit: with 95 % confidence none of them is recommended."""
    rng = np.random.default_rng(1)
    variants, runs, wrong = 20, 300, {"flips": 0, "kl": 0}
    for _ in range(runs):
        flips = rng.binomial(200, 0.1, variants)
        # Windows that all variants share, with skewed damage on each.
        hard = rng.gamma(4, 1 / 4, 24)
        kl = 0.1 * hard * rng.gamma(8, 1 / 8, (variants, 24))
        counts = bootstrap.draws("x", 24, 300, int(rng.integers(1 << 30)))
        called = {"flips": False, "kl": False}
        for variant in range(variants):
            low, high = bootstrap.wilson(flips[variant], 200, 0.95)
            found = budget.check("flips", row(flips[variant] / 200, low, high, 200), 0.1, 0.95, variants)
            called["flips"] |= found.answer == "inside"
            low, high = bootstrap.interval(counts @ kl[variant] / 24, 0.95, 24)
            found = budget.check("kl", row(kl[variant].mean(), low, high, 24), 0.1, 0.95, variants)
            called["kl"] |= found.answer == "inside"
        for kind, one in called.items():
            wrong[kind] += one
    assert wrong["flips"] / runs <= 0.08
    assert wrong["kl"] / runs <= 0.08
