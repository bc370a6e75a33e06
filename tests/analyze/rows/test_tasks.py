"""Rows of tasks against plain computations: means, chance, pairing with the base."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemorrhage.analyze import inputs
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.rows import tasks
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from tests import synthetic
from tests.synthetic import of, pick

SPEC = Spec(resamples=300, confidence=0.95, seed=0, budget=synthetic.BUDGET)


def test_mean_shares_equal_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"task": np.repeat(["a", "b"], [40, 60]), "group": np.arange(100)})
    items["base_correct"], items["correct"] = rng.random(100) < 0.8, rng.random(100) < 0.7
    found = tasks.mean_shares(items, {}, SPEC)
    a, b = (items[items.task == task] for task in "ab")
    flips = ((a.correct != a.base_correct).mean() + (b.correct != b.base_correct).mean()) / 2
    lost = (a.base_correct.mean() - a.correct.mean() + b.base_correct.mean() - b.correct.mean()) / 2
    assert found["mean_flips"].estimate == pytest.approx(flips)
    assert found["accuracy_loss_points"].estimate == pytest.approx(100 * lost)
    size = 4 / (1 / 40 + 1 / 60)
    assert found["mean_flips"].low == pytest.approx(bootstrap.wilson(flips * size, size, 0.95)[0])


def test_nothing_lost_is_not_known_to_be_nothing() -> None:
    same = np.arange(96) % 6 > 0
    items = pd.DataFrame({"task": "a", "group": np.arange(96), "base_correct": same, "correct": same})
    found = tasks.mean_shares(items, {}, SPEC)
    assert found["accuracy_loss_points"].estimate == found["mean_flips"].estimate == 0
    assert 2 < found["accuracy_loss_points"].high < 5
    assert found["mean_flips"].high == pytest.approx(stats.norm.ppf(0.975) ** 2 / (96 + stats.norm.ppf(0.975) ** 2))


def test_a_task_at_chance_takes_part_in_nothing(table: pd.DataFrame) -> None:
    mine = table[(table.variant == "rtn-3") & (table.family != "decode")].set_index(["metric", "dataset"])
    guessed = mine.loc["accuracy_change", "arithmetic"]
    assert guessed.status == "at chance"
    assert "the base is at chance" in guessed.reason
    assert np.isfinite(guessed.estimate)
    assert math.isnan(guessed.p)
    assert math.isnan(guessed.q)
    assert mine.loc["accuracy", "boolq"].status == "at chance", "no better than always the same answer"
    mean = mine.loc["mean_accuracy", "all tasks"]
    assert mean.protocol == "mean of agreement, cloze, recall: synthetic"
    each = [mine.estimate["accuracy", task] for task in ("agreement", "cloze", "recall")]
    assert mean.estimate == pytest.approx(np.mean(each))


def test_other_suites_are_paired_with_the_base(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    mine, base = (pd.read_parquet(of(outputs, "harness", name) / "items.parquet") for name in ("rtn-2", "base"))
    both = mine.merge(base, on=["task", "item"]).query("task == 'piqa'")
    piqa = table[(table.variant == "rtn-2") & (table.dataset == "piqa")].set_index("metric")
    assert piqa.estimate["accuracy_change"] == pytest.approx(both.correct_x.mean() - both.correct_y.mean())
    gained, lost = (both.correct_x & ~both.correct_y).sum(), (~both.correct_x & both.correct_y).sum()
    assert piqa.p["accuracy_change"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    code = table[(table.variant == "rtn-2") & (table.dataset == "humaneval")].set_index("metric")
    assert code.estimate["changed_answers"] >= code.estimate["flips"] > 0
    levels = table[(table.variant == "base") & (table.dataset == "piqa")].set_index("metric").estimate
    assert levels[["chance", "floor"]].tolist() == [0.5, 0.5]


def test_items_that_the_base_did_not_answer_fail(outputs: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "harness" / "rtn-2" / "0123456789ab"
    shutil.copytree(of(outputs, "harness", "rtn-2"), other)
    pd.read_parquet(other / "items.parquet").iloc[1:].to_parquet(other / "items.parquet")
    base, checkpoint = of(outputs, "harness", "base"), of(outputs, "checkpoints", "rtn-2")
    for given, reason in (([base, other], "not those that the base answered"), ([other], "was not measured")):
        found = rows.build(
            inputs.read({**pick(outputs, "base"), "checkpoints": [checkpoint], "harness": given}), SPEC
        ).rows
        mine = found[(found.variant == "rtn-2") & (found.metric == "accuracy")]
        assert len(mine) == 2
        assert (mine.status == "failed").all()
        assert mine.reason.str.contains(reason).all()
