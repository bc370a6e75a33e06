"""What to ship: checks against a budget, the pick, the front, and how often all of it is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemorrhage.analyze import budget, inputs
from hemorrhage.analyze.rows import tasks
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.verdicts import shipping
from hemorrhage.models.engines import engine
from tests import synthetic

SPEC = Spec(resamples=300, confidence=0.95, seed=0, budget=synthetic.BUDGET)
KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    out = tmp_path_factory.mktemp("out") / "reports"
    synthetic.report(out, inputs.read(outputs), SPEC)
    return out


@pytest.fixture(scope="module")
def recommendation(reports: Path) -> dict[str, Any]:
    return json.loads((reports / "recommendation.json").read_text())


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
    checks = budget.judge(table, ["a"], {"kl": 0.1, "flips": 0.1, "task_loss": 0.1}, 0.95, 1)["a"]
    assert [check.answer for check in checks] == ["inside", "not measured", "not measured"]
    assert [check.reason for check in checks] == ["", "because", "it was not measured"]


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


def test_mean_shares_equal_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"task": np.repeat(["a", "b"], [40, 60]), "group": np.arange(100)})
    items["base_correct"], items["correct"] = rng.random(100) < 0.8, rng.random(100) < 0.7
    found = tasks.mean_shares(items, SPEC)
    a, b = (items[items.task == task] for task in "ab")
    flips = ((a.correct != a.base_correct).mean() + (b.correct != b.base_correct).mean()) / 2
    lost = (a.base_correct.mean() - a.correct.mean() + b.base_correct.mean() - b.correct.mean()) / 2
    assert found["mean_flips"].estimate == pytest.approx(flips)
    assert found["task_loss"].estimate == pytest.approx(lost)
    size = 4 / (1 / 40 + 1 / 60)
    assert found["mean_flips"].low == pytest.approx(bootstrap.wilson(flips * size, size, 0.95)[0])


def test_nothing_lost_is_not_known_to_be_nothing() -> None:
    same = np.arange(96) % 6 > 0
    items = pd.DataFrame({"task": "a", "group": np.arange(96), "base_correct": same, "correct": same})
    found = tasks.mean_shares(items, SPEC)
    assert found["task_loss"].estimate == found["mean_flips"].estimate == 0
    assert 0.02 < found["task_loss"].high < 0.05
    assert found["mean_flips"].high == pytest.approx(stats.norm.ppf(0.975) ** 2 / (96 + stats.norm.ppf(0.975) ** 2))


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


def test_the_pick_is_the_smallest_that_holds_everywhere(reports: Path, recommendation: dict[str, Any]) -> None:
    rows = pd.read_parquet(reports / "hemorrhage.parquet")
    assert rows.attrs["confidence"] == 0.95
    names = budget.measured_variants(rows)
    limits = {"kl_mean[": 0.1, "ln_perplexity_ratio[": math.log(1.1), "mean_flips": 0.4, "task_loss": 0.3}
    inside = dict.fromkeys(names, True)
    for name in names:
        mine = rows[(rows.variant == name) & (rows.family != "decode")]
        for metric, limit in limits.items():
            for found in mine[mine.metric.str.startswith(metric)].itertuples():
                factor = wider(35, found.n, (found.n - 1) / (2 if "[" in metric else 1))
                bound = found.estimate + factor * (found.high - found.estimate)
                if metric == "kl_mean[" and found.estimate > 0:
                    bound = found.estimate * (found.high / found.estimate) ** factor
                inside[name] &= bound < limit
    bytes_of = rows[rows.metric == "disk_bytes"].set_index("variant").estimate
    usable = [name for name in names if inside[name] and not name.startswith(("wanda", "magnitude", "sparsegpt"))]
    smaller = [name for name in usable if bytes_of[name] < bytes_of["base"]]
    assert {name for name, one in recommendation["variants"].items() if one["inside"]} == {
        n for n in names if inside[n]
    }
    assert recommendation["judged_together"] == len(names) == 35
    chosen = recommendation["overall"]["variant"]
    assert bytes_of[chosen] == min(bytes_of[name] for name in smaller)
    assert recommendation["variants"][chosen]["binds"] in synthetic.BUDGET
    assert recommendation["overall"] == {
        **recommendation["families"]["weight_quantization"],
        "judged": 35,
        "inside": sum(inside.values()),
    }


def test_a_gain_that_no_engine_uses_is_named_beside_and_never_picked(recommendation: dict[str, Any]) -> None:
    prune = recommendation["families"]["unstructured_pruning"]
    assert prune["variant"] is None
    assert prune["theoretical"] in ("wanda-0.3", "sparsegpt-0.3")
    assert recommendation["variants"][prune["theoretical"]]["no_engine_because"].startswith("masks")


def test_variants_that_failed_are_judged_nowhere(recommendation: dict[str, Any]) -> None:
    assert "sparsegpt-0.7" not in recommendation["variants"]
    assert all(entry["variant"] != "sparsegpt-0.7" for entry in recommendation["front"]["prose"])


def test_what_fails_is_named(recommendation: dict[str, Any]) -> None:
    worst = recommendation["variants"]["rtn-2"]
    assert not worst["inside"]
    assert {"kl", "perplexity"} <= set(worst["fails"])
    assert recommendation["families"]["depth_pruning"] == {
        "variant": None, "size": None, "binds": None, "theoretical": None, "undecided": None,
        "nearest": "shortgpt-0.1", "inside": 0, "judged": 10,
    }  # fmt: skip


def test_without_a_budget_nothing_is_recommended(reports: Path) -> None:
    rows = pd.read_parquet(reports / "hemorrhage.parquet")
    assert budget.judge(rows, ["gptq-8"], {}, 0.95, 1) == {"gptq-8": []}
    assert shipping.pick([]) is None


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.random(40).round(1)
    damage = rng.random((50, 40)).round(2)
    found = shipping.on_front(sizes, damage)
    for draw in range(50):
        for one in range(40):
            beaten = any(
                (sizes[other] <= sizes[one] and damage[draw, other] < damage[draw, one])
                or (sizes[other] < sizes[one] and damage[draw, other] <= damage[draw, one])
                for other in range(40)
            )
            assert found[draw, one] != beaten


def test_the_front_mixes_families_and_knows_how_sure_it_is(recommendation: dict[str, Any]) -> None:
    entries = {entry["variant"]: entry for entry in recommendation["front"]["prose"]}
    assert len(entries) == 35
    assert entries["gptq-4"]["on_front"]
    assert entries["gptq-4"]["probability"] == 1
    assert entries["rtn-4"]["probability"] == 0, "the same bytes as gptq-4, and more damage in every resample"
    assert entries["gptq-8"]["probability"] + entries["rtn-8"]["probability"] == pytest.approx(1)
    assert entries["wanda-0.3"]["probability"] == 0, "on disk it is as large as the base"
    sizes = [entry["size"] for entry in recommendation["front"]["prose"]]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("settings", "loads", "why"),
    [
        ({}, "any Hugging Face program", ""),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "vLLM, transformers", ""),
        ({"hemorrhage": {"forms": ["codebook"]}, "quantization_config": {"load_in_4bit": True}}, "bitsandbytes", ""),
        ({"hemorrhage": {"form": "gguf_file"}}, "llama.cpp", ""),
        ({"hemorrhage": {"form": "sliced"}}, "", "another architecture"),
        ({"hemorrhage": {"forms": ["low_rank"]}}, "", "low_rank"),
        ({"hemorrhage": {"narrow": {"a": 1}}}, "", "narrower"),
        ({"hemorrhage": {"kv_cache": {}, "forms": []}, "quantization_config": {"kv_cache_scheme": {}}}, "any", ""),
        ({"hemorrhage": {"kv_cache": {"bits": 4}}}, "", "keys and values"),
    ],
)
def test_who_can_load_it(settings: dict[str, Any], loads: str, why: str) -> None:
    found, reason = engine(settings)
    if loads != "any":
        assert loads in found
        assert why in reason
    assert bool(found) != bool(reason)
