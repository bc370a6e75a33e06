"""Attention maps against loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.evaluate.diagnostics import attention
from hemorrhage.models.checkpoint import load
from tests.evaluate.diagnostics.literal import of, value


def maps_of(folder: Path, change: Any, tokens: Tensor) -> list[Tensor]:
    model = load(folder)
    model.set_attn_implementation("eager")
    change(model)
    with torch.no_grad():
        return list(model(tokens.long(), output_attentions=True).attentions)


def test_attention_metrics_against_loops(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    def entropy(row: list[float]) -> float:
        return -sum(a * math.log(a) for a in row if a > 0)

    before = maps_of(tiny, lambda model: None, windows)
    after = maps_of(tiny, lambda model: model.load_state_dict(damaged.state_dict()), windows)
    for layer, window, head in ((0, 0, 0), (2, 1, 5), (4, 2, 7)):
        p, q = (maps[layer][window, head].double() for maps in (before, after))
        found: dict[str, list[float]] = {"entropy": [], "sink": [], "distance": [], "js": []}
        for i in range(1, p.shape[0]):
            old, new = p[i, : i + 1].tolist(), q[i, : i + 1].tolist()
            found["entropy"].append(entropy(new) / math.log(i + 1))
            found["sink"].append(new[0])
            found["distance"].append(sum(a * (i - j) for j, a in enumerate(new)))
            middle = [(a + b) / 2 for a, b in zip(old, new, strict=True)]
            found["js"].append(entropy(middle) - (entropy(old) + entropy(new)) / 2)
        for name, values in found.items():
            ours = value(table, f"attention_{name}", layer, window, head)
            assert ours == pytest.approx(sum(values) / len(values), rel=1e-4, abs=2e-6), name
    assert 1e-3 < of(table, "attention_js").mean() < math.log(2)
    assert of(table, "attention_js").between(0, math.log(2)).all()


def test_the_divergence_of_disjoint_maps_is_ln_2() -> None:
    maps = torch.eye(6)[None]
    shifted = torch.eye(6).roll(1, 0)[None]
    shifted[0, 0] = maps[0, 0]
    found = attention.divergence(attention.triangle(maps), attention.triangle(shifted), 6)
    assert found.item() == pytest.approx(math.log(2))
