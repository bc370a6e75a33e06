"""One budget for all: what is read, the rates, and that a rule that does nothing is plain training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.method import Context
from hemorrhage.compress.solvers.pruned_training import (
    PrunedSettings,
    Rule,
    total_rate,
    train,
    write_back,
)
from hemorrhage.compress.solvers.training import batches, stored_dtypes
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def context(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(Statistics(calibrated(odd, tmp_path_factory.mktemp("trained"))), seed=3)


def test_the_sum_of_rates_is_that_of_the_schedule() -> None:
    settings = PrunedSettings(steps=20, learning_rate=1e-3)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    from hemorrhage.compress.solvers.training import rate

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, 20))
    total = 0.0
    for _ in range(20):
        total += float(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert total_rate(settings) == pytest.approx(total)


def test_a_rule_that_does_nothing_is_plain_training(odd: Path, context: Context) -> None:
    settings = PrunedSettings(steps=3, learning_rate=1e-3, batch=2)
    weights = train(load(odd, "stored"), Rule(), settings, context)
    model = load(odd, "stored").float().requires_grad_(False)
    parameters = [linear.weight.requires_grad_() for linear in linears_of(model).values()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    drawn = batches(context.calibration.tokens(), 2, context.seed)
    for share in (1.0, 1.0, 0.5):
        tokens = next(drawn)
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * share
        optimizer.step()
    for weight, parameter in zip(weights.values(), parameters, strict=True):
        torch.testing.assert_close(weight, parameter.detach(), rtol=1e-4, atol=1e-6)


def test_a_rule_sees_weights_gradients_and_rates(odd: Path, context: Context) -> None:
    seen: list[str] = []

    class Looks(Rule):
        def compute_with(self, step: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(f"forward {step}")
            return weights

        def see_gradients(self, weights: dict[str, Tensor]) -> None:
            assert all(weight.grad is not None for weight in weights.values())
            seen.append("gradients")

        def after_step(self, weights: dict[str, Tensor], learning_rate: float) -> None:
            assert learning_rate > 0
            seen.append("after")

    model = load(odd, "stored")
    dtypes = stored_dtypes(model)
    weights = train(model, Looks(), PrunedSettings(steps=2, batch=1), context)
    assert seen == ["forward 0", "gradients", "after", "forward 1", "gradients", "after"]
    write_back(model, weights, dtypes)
    assert stored_dtypes(model) == dtypes
