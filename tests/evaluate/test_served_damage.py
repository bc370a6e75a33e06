"""Divergences of three predictions, by their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from hemorrhage.evaluate import served_damage
from hemorrhage.models.head import Head


def test_three_predictions_of_two_tokens() -> None:
    base, weights, engine = (torch.tensor([p]).log() for p in ([0.5, 0.5], [0.8, 0.2], [0.1, 0.9]))
    found = served_damage.compare(base + 3, weights - 1, engine, torch.tensor([1]))

    def kl(p: tuple[float, float], q: tuple[float, float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    assert set(found) == set(served_damage.COLUMNS)
    assert found["nll"].item() == pytest.approx(-math.log(0.9))
    assert found["nll_weights"].item() == pytest.approx(-math.log(0.2))
    assert found["base_nll"].item() == pytest.approx(math.log(2))
    assert found["kl"].item() == pytest.approx(kl((0.5, 0.5), (0.1, 0.9)))
    assert found["kl_weights"].item() == pytest.approx(kl((0.5, 0.5), (0.8, 0.2)))
    assert found["kl_kernels"].item() == pytest.approx(kl((0.8, 0.2), (0.1, 0.9)))
    # Of equal logits the first is the top one.
    assert not found["same_top1"].item()
    assert found["same_top1_weights"].item()
    assert not found["same_top1_kernels"].item()


def test_a_few_tokens_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    heads = [Head(torch.randn(11, 5, generator=random)) for _ in range(2)]
    states = [torch.randn(7, 5, generator=random) for _ in range(2)]
    engine, targets = torch.randn(7, 11, generator=random), torch.arange(7)
    pairs = (heads[0], states[0]), (heads[1], states[1])
    whole = served_damage.compare(heads[0].logits(states[0]), heads[1].logits(states[1]), engine, targets)
    monkeypatch.setattr(served_damage, "LOGITS", 30)
    parts = list(served_damage.compare_tile(*pairs, engine, targets))
    assert [len(part["nll"]) for part in parts] == [2, 2, 2, 1]
    for name, values in whole.items():
        assert torch.allclose(torch.cat([part[name] for part in parts]).double(), values.double(), atol=1e-6), name
