"""Rows of lm-eval's other metrics, on numbers by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.rows.secondary import secondary_rows
from hemorrhage.analyze.spec import Spec

TASKS: Any = {"piqa": {"sha256": "a" * 64, "protocol": "lm-eval", "chance": 0.5}}


def output(acc: list[float], likelihoods: list[float]) -> Output:
    rows = [("piqa", item, "acc,none", value) for item, value in enumerate(acc)]
    rows += [("piqa", item, "perplexity,none", value) for item, value in enumerate(likelihoods)]
    table = pd.DataFrame(rows, columns=["task", "item", "metric", "value"])
    return Output({"tasks": TASKS}, {"metrics.parquet": table})


def test_each_metric_has_its_level_and_its_change() -> None:
    harness = {
        "base": output([1.0, 1.0, 0.0, 1.0], [-1.0, -2.0, -3.0, -2.0]),
        "rtn-4": output([1.0, 0.0, 0.0, 0.0], [-2.0, -3.0, -3.0, -4.0]),
    }
    variants = {name: Variant.unaltered({}, name, name) for name in harness}
    inputs = cast(Inputs, SimpleNamespace(harness=harness, variants=variants))
    spec = Spec(resamples=200, confidence=0.95, seed=0)
    rows = {(row.variant, row.metric): row for row in secondary_rows(inputs, spec)}
    assert rows["base", "secondary{metric=acc,none}"].estimate == 0.75
    assert rows["rtn-4", "secondary{metric=perplexity,none}"].estimate == pytest.approx(math.exp(3.0))
    change = rows["rtn-4", "secondary_change{metric=acc,none}"]
    assert (change.estimate, change.n) == (-0.5, 4)
    assert change.p == pytest.approx(0.5)
    assert ("base", "secondary_change{metric=acc,none}") not in rows
