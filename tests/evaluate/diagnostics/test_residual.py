"""The residual stream against loops, and ablation by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.evaluate.diagnostics import residual
from tests.evaluate.diagnostics.literal import states_of, value


def test_residual_metrics_against_loops(damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    y = states_of(damaged, windows)
    for layer, window in ((0, 0), (4, 2)):
        found: dict[str, list[float]] = {name: [] for name in ("block_influence", "angular_distance")}
        found |= {"norm_growth": [], "write_norm": []}
        for s, t in zip(y[layer][window], y[layer + 1][window], strict=True):
            cosine = float(s @ t / (s.norm() * t.norm()))
            found["block_influence"].append(1 - cosine)
            found["angular_distance"].append(math.acos(cosine) / math.pi)
            found["norm_growth"].append(float(t.norm() / s.norm()))
            found["write_norm"].append(float((t - s).norm() / s.norm()))
        for name, values in found.items():
            assert value(table, name, layer, window) == pytest.approx(np.mean(values), rel=1e-4), name
        squares = torch.linalg.svdvals(y[layer + 1][window]) ** 2
        share = (squares / squares.sum()).tolist()
        rank = math.exp(-sum(s * math.log(s) for s in share if s > 0))
        assert value(table, "effective_rank", layer, window) == pytest.approx(rank, rel=1e-3)
    assert residual.effective_rank(torch.eye(8)[None]).item() == pytest.approx(8)
    assert residual.effective_rank(torch.ones(1, 8, 3)).item() == pytest.approx(1, abs=1e-4)


def test_self_repair_against_ablation_by_hand(damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    tokens = windows.long()
    y = states_of(damaged, windows)
    norm, head = damaged.model.norm, damaged.lm_head.weight.double()

    def right(hidden: Tensor, window: int) -> Tensor:
        logits = hidden[window].double() @ head.T
        return torch.stack([logits[t, tokens[window, t + 1]] - logits[t].mean() for t in range(len(logits) - 1)])

    with torch.no_grad():
        root = y[-1].square().mean(-1, keepdim=True).add(norm.variance_epsilon).sqrt()
        for layer, window in ((1, 0), (4, 2)):
            written = y[layer + 1] - y[layer]
            direct = float(right(norm.weight * written / root, window).mean())
            block = damaged.model.layers[layer]
            block.forward = lambda hidden, **_: hidden
            ablated = damaged.model(tokens).last_hidden_state
            del block.forward
            whole = damaged.model(tokens).last_hidden_state
            total = float((right(whole, window) - right(ablated, window)).mean())
            assert value(table, "direct_effect", layer, window) == pytest.approx(direct, rel=1e-3, abs=1e-5)
            assert value(table, "total_effect", layer, window) == pytest.approx(total, rel=1e-3, abs=1e-5)
            assert value(table, "self_repair", layer, window) == pytest.approx(1 - total / direct, rel=1e-2, abs=1e-3)
    # Behind the last block nothing can repair but the norm.
    assert not len(table[(table.metric == "self_repair") & (table.layer == -1)])
