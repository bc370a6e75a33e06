"""Sums by block, and the paired interval of two revisions beside the unpaired one."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.rows import blocks, differences
from hemorrhage.analyze.rows.tasks import Suite
from tests.analyze.rows.made import row

KEY = ("x", "kl_mean", "prose")


def table(values: np.ndarray, size: int = 10) -> pd.DataFrame:
    content = {"variant": "x", "metric": "kl_mean", "dataset": "prose", "block": range(len(values)), "size": size}
    return pd.DataFrame({**content, "sum": values * size})


def test_sums_are_those_of_the_tables() -> None:
    tokens = pd.DataFrame(
        {
            "corpus": ["prose", "prose", "prose", "code"],
            "window": [0, 0, 1, 0],
            "kl": [0.1, 0.2, 0.4, 0.8],
            "nll": [1.0, 2.0, 3.0, 4.0],
            "base_nll": [0.5, 1.5, 2.5, 3.0],
            "same_top1": [True, False, True, True],
        }
    )
    evaluations = {"x": Output({}, {"tokens.parquet": tokens}), "y": Output({"failure": "it broke"}, {})}
    indexed = blocks.by_key(blocks.block_sums(Inputs({}, {}, evaluations, {}, {}, {}, {}), []))
    assert set(indexed) == {
        ("x", metric, corpus)
        for metric in ("kl_mean", "ln_perplexity_ratio", "same_top1")
        for corpus in ("prose", "code")
    }
    ((_, _, sums, sizes),) = indexed[KEY]
    assert sums == pytest.approx([0.3, 0.4])
    assert sizes.tolist() == [2, 1]
    assert blocks.block_sums(Inputs({}, {}, {}, {}, {}, {}, {}), []).empty


def test_the_paired_interval_covers_and_is_narrower_where_blocks_vary_together_and_wider_where_against() -> None:
    rng = np.random.default_rng(0)
    covered, ratio = 0, {}
    for sign in (1, -1):
        widths = []
        for _ in range(150):
            common = rng.normal(0, 1, 24)
            first, second = common + 0.2 * rng.normal(size=24), sign * common + 0.2 * rng.normal(size=24) + 0.3
            a, b = blocks.by_key(table(first)), blocks.by_key(table(second))
            ends = blocks.paired_interval(a, b, KEY, 0.95, 400)
            assert ends is not None
            covered += ends[0] <= 0.3 <= ends[1]
            halves = [2.07 * side.std(ddof=1) / math.sqrt(24) for side in (first, second)]
            widths.append((ends[1] - ends[0]) / 2 / math.hypot(*halves))
        ratio[sign] = float(np.mean(widths))
    assert 0.92 <= covered / 300 <= 0.98
    assert ratio[1] < 0.4
    assert ratio[-1] > 1.2


def test_means_over_tasks_are_paired_group_by_group_within_tasks() -> None:
    items = pd.DataFrame(
        {
            "task": ["one"] * 4 + ["two"] * 2,
            "group": [0, 0, 1, 1, 0, 1],
            "choice": 0,
            "base_choice": 0,
            "correct": [True, False, True, True, False, True],
            "base_correct": [True, True, True, True, True, True],
        }
    )
    suite = Suite("all tasks", {"x": Output({"tasks": {"one": {}, "two": {}}}, {"items.parquet": items})}, {})
    before = blocks.by_key(blocks.block_sums(Inputs({}, {}, {}, {}, {}, {}, {}), [suite]))
    accuracy, flips = (before["x", f"mean_{metric}", "all tasks"] for metric in ("accuracy", "flips"))
    assert [stratum[0] for stratum in accuracy] == ["one", "two"]
    assert np.mean([sums.sum() / sizes.sum() for _, _, sums, sizes in accuracy]) == (3 / 4 + 1 / 2) / 2
    assert np.mean([sums.sum() / sizes.sum() for _, _, sums, sizes in flips]) == (1 / 4 + 1 / 2) / 2
    lower = {
        key: [(name, at, sums - 0.25 * sizes, sizes) for name, at, sums, sizes in value]
        for key, value in before.items()
    }
    ends = blocks.paired_interval(before, lower, ("x", "mean_accuracy", "all tasks"), 0.95, 200)
    assert ends == pytest.approx((-0.25, -0.25))
    fewer = {key: value[:1] for key, value in before.items()}
    assert blocks.paired_interval(before, fewer, ("x", "mean_accuracy", "all tasks"), 0.95) is None


def test_other_windows_are_not_paired() -> None:
    values = np.arange(8.0)
    whole = blocks.by_key(table(values))
    assert blocks.paired_interval(whole, blocks.by_key(table(values[:7])), KEY, 0.95) is None
    assert blocks.paired_interval(whole, blocks.by_key(table(values, size=11)), KEY, 0.95) is None
    assert blocks.paired_interval(whole, {}, KEY, 0.95) is None


def test_differences_of_the_same_windows_are_paired() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.2, 0.1, 16)
    sides = (blocks.by_key(table(values)), blocks.by_key(table(values + 0.01)))
    before, after = (pd.DataFrame([row("x", "kl_mean[w1]", value, 0.05)]) for value in (0.2, 0.21))
    ((one,), _) = differences.differences(before, after)
    assert (one.paired, one.certain) == (False, False)
    ((one,), _) = differences.differences(before, after, sides)
    assert (one.paired, one.certain) == (True, True)
