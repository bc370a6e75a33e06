"""KL, flips, bounds, a threshold and the verdicts, rebuilt from the raw tables with plain numpy."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.spec import Spec
from tests import synthetic

BUDGET = {"kl": 0.1, "flips": 0.3, "perplexity": 1.1}
ERROR = 0.05
SWEEPS = ("base", "rtn", "gptq", "random_depth", "shortgpt")
Floats = npt.NDArray[np.float64]


class Study:
    """The folders of a study."""

    def __init__(self, folder: Path) -> None:
        self.outputs = {
            kind: [path for path in paths if path.parent.name.split("-")[0] in SWEEPS]
            for kind, paths in synthetic.write(folder, windows=16, window=64).items()
            if kind in ("base", "checkpoints", "evaluations")
        }
        self.manifests = {path.parent.name: json.loads((path / "manifest.json").read_text())
                          for path in (*self.outputs["base"], *self.outputs["checkpoints"])}  # fmt: skip
        self.tables = {
            (path.parent.name, table): pd.read_parquet(path / f"{table}.parquet")
            for path in self.outputs["evaluations"]
            for table in ("tokens", "items")
        }
        self.variants = [path.parent.name for path in self.outputs["evaluations"] if path.parent.name != "base"]

    def windows(self, variant: str, corpus: str, column: str) -> Floats:
        """Mean of a column in each window, all of one length."""
        table = self.tables[variant, "tokens"]
        table = table[table["corpus"] == corpus].sort_values(["window", "position"])
        values = table["nll"] - table["base_nll"] if column == "ratio" else table[column]
        windows: Floats = np.asarray(values, dtype=np.float64).reshape(table["window"].nunique(), -1)
        return np.asarray(windows.mean(axis=1))

    def items(self, variant: str) -> pd.DataFrame:
        return self.tables[variant, "items"].query("task != @synthetic.AT_CHANCE")

    def flips(self, variant: str) -> dict[str, Floats]:
        """Task -> which answers flipped."""
        items = self.items(variant)
        flipped = items["correct"] != items["base_correct"]
        return {task: flipped[items["task"] == task].to_numpy(np.float64) for task in sorted(set(items["task"]))}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="module")
def reports(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reports"
    analyze(out, inputs.read(study.outputs), Spec(200, 1 - ERROR, 0, BUDGET), "0123456789ab")
    return out


@pytest.fixture(scope="module")
def rows(reports: Path) -> pd.DataFrame:
    found = pd.read_parquet(reports / "hemorrhage.parquet")
    return found.assign(name=found["metric"].str.partition("[")[0]).set_index(["variant", "name", "dataset"])


def standard_error(values: Floats) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


@functools.cache
def skewed_quantile(level: float, n: int) -> float:
    """Minus Student's statistic of n gamma distributed windows, by drawing them."""
    skewness = min(max(math.sqrt(n) / 2, 2), 4)
    shape, found = 4 / skewness**2, []
    rng = np.random.default_rng(7)
    for _ in range(12):
        x = rng.gamma(shape, 1, (10_000, n))
        found.append((shape - x.mean(axis=1)) / (x.std(axis=1, ddof=1) / math.sqrt(n)))
    return float(np.quantile(np.concatenate(found), 1 - level))


@functools.cache
def students_quantile(level: float, n: int) -> float:
    x = np.random.default_rng(8).normal(size=(400_000, n))
    return float(np.quantile(x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(n)), 1 - level))


def trials(study: Study) -> float:
    """Independent items that the tasks together are worth: groups of recall's items flip together or not."""
    inverse = 0.0
    for task in study.flips("base"):
        of_task = study.items("base").query("task == @task")
        group = of_task["group"].to_numpy()
        n, groups = len(group), len(set(group))
        measured = [of_task["base_correct"].to_numpy(np.float64)]
        measured += [study.flips(name)[task] for name in ("base", *study.variants)]
        variance = sum(float(values.var()) for values in measured)
        between = sum(
            float(((values - values.mean())[group == each].sum()) ** 2) for values in measured for each in set(group)
        )
        worth = float(n)
        if groups < n:
            shrunk = (students_quantile(0.025, n) / students_quantile(0.025, groups)) ** 2
            worth = min(variance * shrunk / (groups / (groups - 1) * between / n**2), float(n))
        inverse += 1 / worth
    return len(study.flips("base")) ** 2 / inverse


def share_bound(share: float, n: float, level: float) -> float:
    """Clopper and Pearson's upper bound, from the density of the beta distribution."""
    p = (np.arange(200_000) + 0.5) / 200_000
    log = share * n * np.log(p) + (n - share * n - 1) * np.log1p(-p)
    mass = np.cumsum(np.exp(log - log.max()))
    return float(p[np.searchsorted(mass, (1 - level) * mass[-1])])


def test_kl_and_flips(study: Study, rows: pd.DataFrame) -> None:
    for name in study.variants:
        for corpus in synthetic.CORPORA:
            for metric, column in (("kl_mean", "kl"), ("ln_perplexity_ratio", "ratio")):
                values, row = study.windows(name, corpus, column), rows.loc[name, metric, corpus]
                assert row["estimate"] == pytest.approx(values.mean(), rel=1e-6)
                assert row["error"] == pytest.approx(standard_error(values), rel=1e-6)
        shares = [flips.mean() for flips in study.flips(name).values()]
        assert rows.loc[name, "mean_flips", "all tasks"]["estimate"] == pytest.approx(np.mean(shares))


def test_bounds_and_verdicts(study: Study, rows: pd.DataFrame, reports: Path) -> None:
    n, worth = 16, trials(study)
    assert rows["trials"].dropna().to_numpy() == pytest.approx(worth, rel=0.02)
    base = study.manifests["base"]["disk_bytes"]
    sizes = {name: study.manifests[name]["disk_bytes"] for name in study.variants}
    group = [name for name in sizes if sizes[name] < base and not name.startswith("random_depth")]

    def distances(name: str, level: float) -> list[tuple[float, float]]:
        """Lower and upper bounds minus their limits."""
        found = []
        for column, limit in (("kl", BUDGET["kl"]), ("ratio", math.log(BUDGET["perplexity"]))):
            for corpus in synthetic.CORPORA:
                values = study.windows(name, corpus, column)
                low = values.mean() - students_quantile(level, n) * standard_error(values) - limit
                found.append((low, values.mean() + skewed_quantile(level, n) * standard_error(values) - limit))
        share = float(np.mean([flips.mean() for flips in study.flips(name).values()]))
        low = 1 - share_bound(1 - share, worth, level) - BUDGET["flips"]
        return [*found, (low, share_bound(share, worth, level) - BUDGET["flips"])]

    certain = ERROR / 10 / len(group)
    left = [name for name in group if max(low for low, _ in distances(name, certain)) < 0]
    levels: dict[str, float] = {}
    while left:
        level = 0.9 * ERROR / len(left)
        levels |= dict.fromkeys(left, level)
        inside = [name for name in left if max(high for _, high in distances(name, level)) < 0]
        if not inside:
            break
        left = [name for name in left if name not in inside]
    found: dict[str, Any] = json.loads((reports / "recommendation.json").read_text())
    assert 1 < len(levels) < len(group)
    assert {name: found["variants"][name]["checks"][0]["level"] for name in levels} == pytest.approx(levels, rel=1e-4)
    called = {name for name in levels if max(high for _, high in distances(name, levels[name])) < 0}
    assert called == {name for name in group if found["variants"][name]["inside"]}
    assert sizes[found["overall"]["variant"]] == min(sizes[name] for name in called)
    for name in levels:
        values = study.windows(name, "prose", "kl")
        bound = values.mean() + skewed_quantile(levels[name], n) * standard_error(values)
        kl = next(
            check
            for check in found["variants"][name]["checks"]
            if check["kind"] == "kl" and check["dataset"] == "prose"
        )
        assert kl["bound"] == pytest.approx(bound, rel=0.02)


def test_the_perplexity_doubles_between_the_points_around_it(study: Study, reports: Path) -> None:
    entries = json.loads((reports / "thresholds.json").read_text())["curves"]
    entry = next(each for each in entries if each["corpus"] == "prose" and each["sweep"] == "rtn")
    bits = {name: study.manifests[name]["effective_bits"] for name in study.variants if name.startswith("rtn-")}
    damage = {name: float(study.windows(name, "prose", "ratio").mean()) for name in bits}
    below = min(bits[name] for name in bits if damage[name] < math.log(2))
    above = max(bits[name] for name in bits if damage[name] >= math.log(2))
    found = entry["two_fold"]
    assert above <= found["estimate"] <= below
    assert found["low"] <= found["estimate"] <= found["high"]
