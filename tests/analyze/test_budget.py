"""Checks against a budget: intervals, bounds of many variants, and how often they are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks import gate
from scipy import stats

from hemorrhage.analyze import budget
from hemorrhage.analyze.stats import bounds
from tests.conftest import ROOT


def row(estimate: float, low: float, high: float, n: int = 16, **fields: Any) -> dict[str, Any]:
    content = {"metric": "kl_mean[tag]", "dataset": "prose", "status": "ok", "reason": ""}
    return {**content, "estimate": estimate, "low": low, "high": high, "n": n, **fields}


def check(kind: str, content: dict[str, Any], limit: float) -> budget.Check:
    """Judge one variant with one number."""
    metric = budget.DAMAGE_KINDS[kind].metric
    table = pd.DataFrame([{"variant": "a", "family": "f", **content, "metric": f"{metric}[tag]"}])
    return budget.judge(table, ["a"], {kind: limit}, 0.95, [["a"]])["a"][0]


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [((0.05, 0.03, 0.07), "inside"), ((0.2, 0.15, 0.25), "outside"), ((0.09, 0.05, 0.13), "not resolved")],
)
def test_an_interval_against_a_limit(numbers: tuple[float, float, float], answer: str) -> None:
    found = check("kl", row(*numbers), 0.1)
    assert found.answer == answer
    error = (numbers[2] - numbers[0]) / stats.t.ppf(0.975, 15)
    assert found.bound == pytest.approx(numbers[0] + bounds.skewed_quantile(0.05, 16) * error)
    assert found.level == pytest.approx(0.05)


def test_the_standard_error_of_a_row_is_what_counts() -> None:
    found = check("kl", row(0.09, 0.05, 0.13, error=0.001), 0.1)
    assert found.answer == "inside"
    assert found.bound == pytest.approx(0.09 + bounds.skewed_quantile(0.05, 16) * 0.001)


def test_how_many_windows_would_tell() -> None:
    found = check("kl", row(0.09, 0.07, 0.11, error=0.01), 0.1)
    assert found.needed == bounds.windows_needed(0.09, 0.01, 16, 0.1, 0.05)
    assert f"about {found.needed:,} fresh windows would tell, 16 measured" in str(found)
    assert found.needed == budget.needed("kl", row(0.09, 0.07, 0.11, error=0.01), 0.1, 0.05)
    items = row(0.04, 0.01, 0.07, n=192, error=0.02, trials=96)
    assert budget.needed("flips", items, 0.05, 0.05) == 2 * (bounds.items_needed(0.04, 96, 0.05, 0.05) or 0)
    few, many = (budget.needed("accuracy_loss_points", row(loss, 0, 1, n=192, error=0.0, trials=96), 2, 0.05) or 0
                 for loss in (0.0, 1.5))  # fmt: skip
    assert 192 < few < many


def test_how_many_confirm_a_variant_well_inside() -> None:
    measured = row(0.02, 0.01, 0.03, error=0.002)
    windows = budget.confirming("kl", measured, 0.1, 0.01)
    assert windows == bounds.windows_to_confirm(0.1 / 1.5, 0.4 * 0.1 / 1.5, 0.1, 0.01)
    assert budget.confirming("kl", row(0.0003, -0.001, 0.001, error=0.0006), 0.1, 0.01) is None
    items = budget.confirming("flips", row(0.0, 0.0, 0.1, n=48, error=0.0, trials=48), 0.05, 0.05)
    assert items == bounds.items_to_confirm(0.05 / 1.5, 0.05, 0.05)
    points = [budget.confirming("accuracy_loss_points", row(0, 0, 1, n=48, error=0.0, trials=48), limit, 0.05) or 0
              for limit in (1, 2)]  # fmt: skip
    assert points[0] > points[1] > 48


def test_the_least_items_are_those_of_a_measurement_that_says_no_more() -> None:
    measured = row(0.0, 0.0, 0.1, n=48, error=0.0, trials=48)
    for kind, limit in (("flips", 0.05), ("accuracy_loss_points", 2.0)):
        assert budget.least_items(kind, limit, 0.05) == budget.confirming(kind, measured, limit, 0.05)
    rng = np.random.default_rng(0)
    items = budget.least_items("flips", 0.05, 0.05)
    assert items is not None
    flips = rng.binomial(items, 0.05 / 1.5, 300) / items
    inside = np.mean([bounds.share_bounds(share, items, 0.05)[1] < 0.05 for share in flips])
    assert 0.74 <= inside <= 0.88


def test_perplexity_is_judged_as_a_log_and_told_as_a_ratio() -> None:
    found = check("perplexity", row(0.05, 0.04, 0.06), 1.1)
    assert found.answer == "inside"
    assert found.high == pytest.approx(math.exp(0.06))
    assert found.used == pytest.approx(math.log(found.bound or 0) / math.log(1.1))
    named = replace(found, metric="ln_perplexity_ratio[w64]")
    assert str(named).startswith("perplexity_ratio[w64] on prose: 1.051 (1.041 to 1.062;")


def test_the_worst_window_is_what_was_seen() -> None:
    assert check("kl_worst_window", row(0.3, math.nan, math.nan), 0.4).answer == "inside"
    found = check("kl_worst_window", row(0.5, math.nan, math.nan), 0.4)
    assert found.answer == "outside"
    assert str(found) == "kl_worst_window[tag] on prose: 0.5, limit 0.4: outside"


def test_the_99th_percentile_has_a_limit() -> None:
    assert check("kl_p99", row(0.5, 0.4, 0.7), 2.0).answer == "inside"
    found = check("kl_p99", row(0.5, 0.4, 0.7), 0.6)
    assert found.bound == pytest.approx(0.5 + bounds.skewed_quantile(0.05, 16) * 0.2 / stats.t.ppf(0.975, 15))


def table(kl: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame([{"variant": name, "family": "f", **row(mean, mean - 0.01, mean + 0.01, error=0.005)}
                         for name, mean in kl.items()])  # fmt: skip


def test_those_beyond_doubt_leave_their_share_of_the_error_to_the_others() -> None:
    kl = {"near": 0.085, "clear": 0.01} | {f"far{number}": 1.0 for number in range(40)}
    checks = budget.judge(table(kl), list(kl), {"kl": 0.1}, 0.95, [list(kl)])
    assert checks["clear"][0].level == pytest.approx(0.045 / 2)
    assert checks["near"][0].level == pytest.approx(0.045), "the clear one is inside, and leaves its share"
    close = dict.fromkeys(kl, 0.09)
    checks = budget.judge(table(close), list(close), {"kl": 0.1}, 0.95, [list(close)])
    assert checks["near"][0].level == pytest.approx(0.045 / 42)


def test_what_can_not_be_picked_takes_no_share() -> None:
    kl = {"a": 0.09, "b": 0.09, "control": 0.09}
    checks = budget.judge(table(kl), list(kl), {"kl": 0.1}, 0.95, [["a", "b"]])
    assert [checks[name][0].level for name in kl] == pytest.approx([0.0225, 0.0225, 0.05])


def test_no_flip_is_bounded_better_than_one() -> None:
    found = [check("flips", row(flips / 48, 0.0, 0.1, n=48, error=0.0, trials=40), 0.2) for flips in (0, 1, 2)]
    highs = [each.bound or 0 for each in found]
    assert highs == sorted(highs)
    assert highs[0] == pytest.approx(1 - 0.05 ** (1 / 40))
    lost = [check("accuracy_loss_points", row(100 * loss, 0, 1, n=48, trials=40,
                                              error=100 * math.sqrt(max(loss - loss**2, 0) / 40)), 20)
            for loss in (0, 1 / 48, 2 / 48)]  # fmt: skip
    assert lost[0].bound == pytest.approx(100 * (1 - 0.05 ** (1 / 40)))
    assert [each.bound for each in lost] == sorted(each.bound or 0 for each in lost)


@pytest.mark.parametrize("status", ["failed", "undefined"])
def test_what_was_not_measured_is_never_inside(status: str) -> None:
    table = pd.DataFrame(
        [
            {"variant": "a", "family": "f", **row(0.01, 0.0, 0.02)},
            {"variant": "a", "family": "f", **row(math.nan, math.nan, math.nan, 0, metric="mean_flips", status=status,
             dataset="all tasks", reason="because")},
        ]
    )  # fmt: skip
    checks = budget.judge(table, ["a"], {"kl": 0.1, "flips": 0.1, "accuracy_loss_points": 10}, 0.95, [["a"]])["a"]
    assert [check.answer for check in checks] == ["inside", "not measured", "not measured"]
    assert [check.reason for check in checks] == ["", "because", "it was not measured"]


def test_each_category_is_checked_but_for_those_with_few_windows() -> None:
    whole = {"variant": "a", "family": "f", **row(0.01, 0.0, 0.02)}
    hard = {**whole, **row(0.2, 0.15, 0.25, 8, metric="kl_mean{category=hard (x)}[tag]")}
    few = {**whole, **row(0.9, 0.8, 1.0, 7, metric="kl_mean{category=few}[tag]")}
    bucket = {**whole, **row(0.9, 0.8, 1.0, 8, metric="kl_mean{position=1}[tag]")}
    table = pd.DataFrame([whole, hard, few, bucket])
    checks = budget.judge(table, ["a"], {"kl": 0.1}, 0.95, [["a"]])["a"]
    assert [(each.dataset, each.answer) for each in checks] == [("prose", "inside"), ("prose (hard (x))", "outside")]
    assert budget.few_windows(table) == {"prose (few)": 7}


def test_a_suite_at_chance_is_silent_where_another_speaks_and_a_failed_one_is_not() -> None:
    flips = {"variant": "a", "family": "f", "metric": "mean_flips"}
    spoken = {**row(0.01, 0.0, 0.02, 200), **flips, "dataset": "all tasks"}
    silent = {
        **row(math.nan, math.nan, math.nan, 0, status="undefined", reason="at chance"),
        **flips,
        "dataset": "code",
    }
    for status, answers in (("undefined", ["inside"]), ("failed", ["inside", "not measured"])):
        checks = budget.judge(pd.DataFrame([spoken, {**silent, "status": status}]), ["a"], {"flips": 0.1}, 0.95, [])
        assert [check.answer for check in checks["a"]] == answers


def test_of_variants_on_the_limit_hardly_ever_any_is_called_inside() -> None:
    """Twenty variants whose true damage is the limit: with 95 % confidence none of them is recommended."""
    rng = np.random.default_rng(1)
    variants, runs, wrong = 20, 100, {"flips": 0, "kl": 0}
    names = [f"v{number}" for number in range(variants)]
    for _ in range(runs):
        # Windows that all variants share, with skewed damage on each.
        kl = 0.1 * rng.gamma(4, 1 / 4, 24) * rng.gamma(8, 1 / 8, (variants, 24))
        flips = rng.binomial(200, 0.1, variants) / 200
        for kind, means, n, more in (
            ("kl", kl.mean(axis=1), 24, {"error": kl.std(axis=1, ddof=1) / math.sqrt(24)}),
            ("flips", flips, 200, {"error": np.sqrt(flips * (1 - flips) / 200), "trials": np.full(variants, 200.0)}),
        ):
            drawn = pd.DataFrame({"variant": names, "family": "f", **row(0, 0, 0, n), "estimate": means, **more})
            drawn["metric"] = budget.DAMAGE_KINDS[kind].metric
            checks = budget.judge(drawn, names, {kind: 0.1}, 0.95, [names])
            wrong[kind] += any(each[0].answer == "inside" for each in checks.values())
    assert wrong["flips"] / runs <= 0.1
    assert wrong["kl"] / runs <= 0.1


def test_on_real_windows_what_the_docs_say_holds() -> None:
    """The script's numbers in the docs are at most 5.5 %, and a short run of it agrees with them."""
    _, _, rest = (ROOT / "docs/thresholds.md").read_text(encoding="utf-8").partition(gate.BEGIN)
    printed, _, _ = rest.partition(gate.END)
    first, _, _ = printed.strip().partition("\n\n")
    cells = [[cell.strip(" %") for cell in line.strip("|").split("|")] for line in first.splitlines()[2:]]
    shares = {row[0]: [float(cell) for cell in row[1:]] for row in cells}
    assert list(shares) == [*(f"KL, {n} windows" for n in gate.WINDOWS), *(f"flips, {n} items" for n in gate.ITEMS)]
    assert max(max(row) for row in shares.values()) <= 5.5
    for variants, said in zip(gate.VARIANTS[:3], shares["KL, 16 windows"], strict=False):
        found = 100 * gate.windows_called_inside(1, 16, variants, 200)
        assert abs(found - said) <= 3 * 100 * math.sqrt(0.05 * 0.95 * (1 / 200 + 1 / 1000))
