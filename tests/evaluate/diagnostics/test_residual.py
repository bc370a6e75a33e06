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
from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from tests.evaluate.diagnostics.literal import states_of, value
from tests.families import new_model


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


def handed_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """A block that adds nothing."""
    return hidden


@pytest.mark.parametrize(
    ("family", "norm"),
    [("gpt_neox", "gpt_neox.final_layer_norm"), ("cohere", "model.norm"), ("olmo", "model.norm"), ("xglm", None)],
)
def test_self_repair_behind_a_norm_that_centres_and_adds(family: str, norm: str | None) -> None:
    """Of a layer norm: with weight and bias, with a weight alone, with neither."""
    model: Any = new_model(family).float()
    last: Any = model.get_submodule(norm or "model.layer_norm")
    tokens = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    weight = 1 if getattr(last, "weight", None) is None else last.weight.double()
    states: list[Tensor] = []
    hooks = [
        blocks(model)[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])),
        *(
            block.register_forward_hook(
                lambda *call: states.append(call[2][0] if isinstance(call[2], tuple) else call[2])
            )
            for block in blocks(model)
        ),
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    head = model.get_output_embeddings().weight.double() * getattr(model, "logit_scale", 1)
    directions = head[tokens[:, 1:]] - head.mean(0)
    root = (states[-1].double().var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    def final() -> Tensor:
        with torch.no_grad():
            made: Tensor = model.get_decoder()(tokens, use_cache=False).last_hidden_state.double()
        return made[:, :-1]

    whole, found = final(), residual.repair(model, tokens)
    for index, block in enumerate(blocks(model)):
        written = (states[index + 1] - states[index]).double()
        linear = weight * (written - written.mean(-1, keepdim=True)) / root
        direct = (linear[:, :-1] * directions).sum(-1).mean(-1)
        original = block.forward
        block.forward = handed_on
        total = ((whole - final()) * directions).sum(-1).mean(-1)
        block.forward = original
        torch.testing.assert_close(found[index]["direct_effect"], direct.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[index]["total_effect"], total.detach(), rtol=1e-3, atol=1e-4)


def test_a_projection_behind_the_last_norm_has_no_self_repair() -> None:
    with pytest.raises(RefusedError, match="leaves the width as it is"):
        residual.repair(new_model("opt-projected").float(), torch.ones(1, 4, dtype=torch.long))
