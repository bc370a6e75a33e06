"""Rows of layers and heads, and of cost, against plain computations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.synthetic import of


def test_inside_and_cost(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    directory = of(outputs, "evaluations", "wanda-0.5")
    seen = pd.read_parquet(directory / "diagnostics.parquet")
    mine = table[table.variant == "wanda-0.5"].set_index("metric")
    one = seen.query("metric == 'local_error' and layer == 3").value
    found = mine.loc["local_error{layer=3}"]
    assert (found.estimate, found.n) == (pytest.approx(one.mean()), 4)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, one.mean(), stats.sem(one)))
    head = seen.query("metric == 'attention_entropy' and layer == 2 and head == 1").value.mean()
    assert mine.estimate["attention_entropy{layer=2,head=1}"] == pytest.approx(head)
    layers = seen[seen["head"] < 0].groupby(["metric", "layer"]).value.mean()
    assert mine.estimate["local_sqnr{layers=worst}"] == pytest.approx(layers["local_sqnr"].min())
    assert mine.estimate["local_sqnr{layers=mean}"] == pytest.approx(layers["local_sqnr"].mean())
    assert mine.estimate["local_error{layers=worst}"] == pytest.approx(layers["local_error"].max())
    assert np.isfinite(mine.estimate["log_amplification"])
    cost = json.loads((directory / "cost.json").read_text())
    prefill = mine.loc["prefill_tokens_per_second"]
    expected = (np.median(cost["prefill"]), min(cost["prefill"]), max(cost["prefill"]))
    assert (prefill.estimate, prefill.low, prefill.high) == pytest.approx(expected)
    assert prefill.protocol.startswith("batch=1 length=128 new_tokens=32 threads=1 dtype=float32 peak_of=process")
    assert prefill.protocol.endswith(" theoretical: weights: a dequantized dense copy computes")
    assert mine.estimate["kv_bytes"] == mine.estimate["kv_bytes_formula"]
