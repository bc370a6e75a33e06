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
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bounds
from hemorrhage.analyze.verdicts import shipping
from hemorrhage.models.engines import engine
from tests import synthetic

SPEC = Spec(resamples=300, confidence=0.95, seed=0, budget=synthetic.BUDGET)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    out = tmp_path_factory.mktemp("out") / "reports"
    synthetic.report(out, inputs.read(outputs), SPEC)
    return out


@pytest.fixture(scope="module")
def recommendation(reports: Path) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((reports / "recommendation.json").read_text())
    return page


def bound(row: Any, metric: str, level: float) -> float:
    """Compute an upper bound from a row's numbers, in the row's unit."""
    if metric == "mean_flips":
        successes = row.estimate * row.trials
        return float(stats.beta.isf(level, successes + 1, row.trials - successes))
    if metric == "accuracy_loss_points":
        loss = row.estimate / 100
        changed = max((row.error / 100) ** 2 * row.trials + loss**2, abs(loss))
        shares = (changed + loss) / 2, (changed - loss) / 2
        return 100 * bounds.difference_bounds(*shares, row.trials, level)[1]
    return float(row.estimate + bounds.skewed_quantile(level, row.n) * row.error)


def test_the_pick_is_the_smallest_that_holds_everywhere(reports: Path, recommendation: dict[str, Any]) -> None:
    rows = pd.read_parquet(reports / "hemorrhage.parquet")
    assert rows.attrs["confidence"] == 0.95
    names = budget.measured_variants(rows)
    limits = {"kl_mean": 0.1, "ln_perplexity_ratio": math.log(1.1), "mean_flips": 0.4, "accuracy_loss_points": 30}
    inside = dict.fromkeys(names, True)
    for name in names:
        level = recommendation["variants"][name]["checks"][0]["level"]
        assert 0.045 / 35 <= level <= 0.05
        mine = rows[(rows.variant == name) & (rows.family != "decode") & (rows.status == "ok")]
        for metric, limit in limits.items():
            for found in mine[mine.metric.str.partition("[")[0] == metric].itertuples():
                inside[name] &= bound(found, metric, level) < limit
    bytes_of = rows[rows.metric == "disk_bytes"].set_index("variant").estimate
    usable = [name for name in names if inside[name] and not name.startswith(("wanda", "magnitude", "sparsegpt"))]
    smaller = [name for name in usable if bytes_of[name] < bytes_of["base"]]
    assert {name for name, one in recommendation["variants"].items() if one["inside"]} == {
        n for n in names if inside[n]
    }
    candidates = rows.attrs["candidates"]
    assert recommendation["judged_together"] == {kind: len(members) for kind, members in candidates.items()}
    assert len(names) == 35
    assert set(smaller) <= set(candidates["usable"])
    controls = {name for name in names if name.startswith(("awq_shuffled", "random_depth"))}
    assert controls
    assert not controls & {*candidates["usable"], *candidates["theoretical"]}, "a control is never picked"
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
    assert budget.judge(rows, ["gptq-8"], {}, 0.95, []) == {"gptq-8": []}
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
        ({}, "transformers", ""),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "vLLM 0.33", ""),
        (
            {"hemorrhage": {"forms": ["codebook"]}, "quantization_config": {"quant_method": "bitsandbytes"}},
            "bitsandbytes",
            "",
        ),
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
