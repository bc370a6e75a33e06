"""Six models in two groups: a synthetic study with other numbers in its rows, analyzed together once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze as analyze_one
from hemorrhage.analyze.family.__main__ import analyze
from hemorrhage.analyze.family.models import Description, Model, read
from hemorrhage.analyze.family.page.__main__ import draw
from hemorrhage.analyze.family.results import Results
from hemorrhage.analyze.spec import Spec
from tests import synthetic

SPEC = Spec(resamples=100, confidence=0.95, seed=0, budget=synthetic.BUDGET)
PLANTED = 3.0
"""Ratio of the KL of group ``b`` to that of ``a``."""

DESCRIBED: dict[str, Description] = {
    f"{group}-{seed}": {"group": group, "factors": {"model": group, "seed": seed}}
    for group in "ab"
    for seed in range(3)
}


@pytest.fixture(scope="package")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """Return the folder of reports with the page, and what was concluded."""
    outputs = synthetic.write(tmp_path_factory.mktemp("family"), windows=16, window=64)
    reports = tmp_path_factory.mktemp("out") / "reports"
    first, *others = DESCRIBED
    analyze_one(reports / first, inputs.read(outputs), SPEC, "0123456789ab")
    for name in others:
        shutil.copytree(reports / first, reports / name)
    noise = np.random.default_rng(0).normal(0, 0.05, len(DESCRIBED))
    for (name, described), error in zip(DESCRIBED.items(), noise, strict=True):
        factor = np.exp(error) * (PLANTED if described["group"] == "b" else 1.0)
        _scale(reports / name / "hemorrhage.parquet", ["estimate", "low", "high"], factor)
        _diagnose(reports / name / "hemorrhage.parquet", np.exp(error))
    concluded = analyze(reports, DESCRIBED, SPEC, "an address")
    draw(reports, "a page")
    return reports, concluded


def _scale(file: Path, columns: Sequence[str], factor: float) -> None:
    rows = pd.read_parquet(file)
    of_kl = rows["metric"].str.startswith("kl_mean")
    rows.loc[of_kl, list(columns)] *= factor
    rows.to_parquet(file, index=False)


def _diagnose(file: Path, factor: float) -> None:
    """Add what the base's blocks do to the state, which the synthetic study lacks, as ``factor`` times what it has."""
    rows = pd.read_parquet(file)
    written = rows[(rows["variant"] == "base") & rows["metric"].str.startswith("write_norm{layer")]
    added = [
        written.assign(
            metric=written["metric"].str.replace("write_norm", name), estimate=start + factor * written["estimate"]
        )
        for name, start in (("norm_growth", 1.0), ("block_influence", 0.0))
    ]
    pd.concat([rows, *added], ignore_index=True).to_parquet(file, index=False)


@pytest.fixture(scope="package")
def reports(analyzed: tuple[Path, Results]) -> Path:
    """Return the folder of reports."""
    return analyzed[0]


@pytest.fixture(scope="package")
def results(analyzed: tuple[Path, Results]) -> Results:
    """Return what was concluded."""
    return analyzed[1]


@pytest.fixture(scope="package")
def models(reports: Path) -> list[Model]:
    """Return the models."""
    return read(reports, DESCRIBED)
