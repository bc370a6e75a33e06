"""Rows of the hemorrhage table against plain computations, and what must never become a number."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from tests.synthetic import of, pick

SPEC = Spec(resamples=200, confidence=0.95, seed=0)
TAG = "w64-s64-b0-jnn-n1008-f32"


def test_what_an_output_lacks_has_no_rows(outputs: dict[str, Any], tmp_path: Path) -> None:
    less = []
    for path in outputs["evaluations"]:
        less.append(tmp_path / path.parent.name / path.name)
        shutil.copytree(path, less[-1], ignore=shutil.ignore_patterns("diagnostics*", "windows*", "cost*"))
    found = inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": less})
    analyze(tmp_path / "reports", found, SPEC, "a")
    metrics = set(pd.read_parquet(tmp_path / "reports" / "hemorrhage.parquet").metric)
    assert f"perplexity[{TAG}]" in metrics
    assert not any(name.startswith(("word_", "bits_per_byte", "local_", "prefill", "kv_")) for name in metrics)


def test_values_that_are_no_numbers_become_undefined_rows(outputs: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "evaluations" / "rtn-3" / "0123456789ab"
    shutil.copytree(of(outputs, "evaluations", "rtn-3"), broken)
    tokens = pd.read_parquet(broken / "tokens.parquet")
    tokens.assign(nll=np.float32(1000)).to_parquet(broken / "tokens.parquet")
    given = [of(outputs, "evaluations", "base"), broken]
    found = rows.build(inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": given}), SPEC).rows
    mine = found[(found.variant == "rtn-3") & (found.dataset == "prose")].set_index("metric")
    assert mine.status[f"perplexity[{TAG}]"] == "undefined"
    assert mine.status[f"ln_probability_correlation[{TAG}]"] == "undefined"
    assert mine.status[f"ln_perplexity_ratio[{TAG}]"] == "ok"
