"""The loss of the next token beside the formula, and a step's gradients beside those of the whole batch at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hemorrhage.train import architecture, objectives
from hemorrhage.train.batches import Windows
from hemorrhage.train.objectives import NextToken
from tests.train.made import spec

TOKENS = np.random.default_rng(3).integers(0, 288, 2000).astype(np.int32)


@pytest.fixture
def objective() -> NextToken:
    windows = Windows({"docs": TOKENS}, {"docs": 1.0}, 32, 0)
    return NextToken(windows, windows, batch=5, tokens=1000, is_lowered=False)


def model(**changes: object) -> Any:
    written = {**spec()["architecture"], **changes}
    return architecture.create(architecture.configure(written, 288, 32), 0)


def literal(made: Any, windows: Any) -> float:
    """-1/T sum ln p(x_t | x_<t), in float64."""
    with torch.no_grad():
        logits = made(input_ids=torch.from_numpy(windows[:, :-1].astype(np.int64))).logits.double().numpy()
    total = 0.0
    for row, scores in zip(windows, logits, strict=True):
        for target, of_token in zip(row[1:], scores, strict=True):
            total -= of_token[target] - math.log(np.exp(of_token - of_token.max()).sum()) - of_token.max()
    return float(total / (windows.shape[0] * (windows.shape[1] - 1)))


def test_loss_is_the_mean_negative_log_likelihood(objective: NextToken) -> None:
    made = model()
    assert objective.backward(made, 2) == pytest.approx(literal(made, objective.train.batch(10, 5)), rel=1e-5)
    first = np.stack([objective.train.window("docs", index) for index in range(62)])
    assert objective.heldout(made) == pytest.approx(literal(made, first), rel=1e-5)


def test_pieces_add_up_to_the_gradients_of_the_batch(objective: NextToken, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = model(), model()
    objective.backward(whole, 0)
    monkeypatch.setattr(objectives, "PIECE", 64)
    objective.backward(pieces, 0)
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_steps_are_as_many_as_the_tokens_need(objective: NextToken) -> None:
    assert objective.steps == round(1000 / (5 * 32))
    assert objective.tokens(3) == 3 * 5 * 32


def test_a_mixtures_routers_are_balanced_by_its_configs_weight(objective: NextToken) -> None:
    ids = torch.from_numpy(objective.train.batch(0, 2)[:, :-1].astype(np.int64))
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2}
    made = model(**mixture, router_aux_loss_coef=0.5)
    _, balance = objectives.forward(made, ids)
    expected = 0.5 * made(input_ids=ids, output_router_logits=True).aux_loss
    assert balance.item() == pytest.approx(expected.item())
    assert objectives.forward(model(), ids)[1].item() == 0
