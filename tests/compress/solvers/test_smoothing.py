"""Tests of smoothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.solvers import smoothing
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated
from tests.layers import layer_of, logits_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("activations"))


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return logits_of(model, tokens)


def test_smoothing_scales_are_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 5, generator=generator), torch.randn(3, 5, generator=generator)]
    weights[0][:, 4] = weights[1][:, 4] = 0
    largest = torch.tensor([1.0, 8.0, 0.5, 0.0, 2.0])
    ours = smoothing.scales(largest, weights, 0.7)
    for j in range(3):
        heaviest = max(abs(row[j]) for weight in weights for row in weight.tolist())
        assert ours[j].item() == pytest.approx(largest[j].item() ** 0.7 / heaviest**0.3)
    assert ours[3:].tolist() == [1, 1]


def test_the_norms_before_layers_are_found(tiny: Path) -> None:
    model = load(tiny)
    found = smoothing.norms_before(model)
    assert len(found) == 5 * 5
    for index, block in enumerate(model.model.layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            assert found[f"model.layers.{index}.{name}"] is block.input_layernorm
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            assert found[f"model.layers.{index}.{name}"] is block.post_attention_layernorm


def test_a_fold_without_rounding_changes_nothing(tiny: Path, calibration: Path, text: Tensor) -> None:
    model, statistics = load(tiny), Statistics(calibration)
    before = logits(model, text)
    norms = smoothing.norms_before(model)
    largest = 0.0
    with torch.no_grad():
        for first, names in statistics.shared().items():
            if first not in norms:
                continue
            weights = [layer_of(model, name).weight for name in names]
            scale = smoothing.scales(statistics.max_abs(first), weights, 0.5)
            largest = max(largest, scale.max().item() / scale.min().item())
            factor = smoothing.fold(norms[first], scale)
            for weight in weights:
                weight *= factor
    assert largest > 1.5
    torch.testing.assert_close(logits(model, text), before, rtol=0, atol=1e-4 * before.abs().max().item())


def test_a_fold_into_half_precision_counts_the_rounding() -> None:
    norm = torch.nn.LayerNorm(8).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
        norm.bias.copy_(torch.linspace(-1, 1, 8))
    before = norm.weight.detach().float().clone()
    factor = smoothing.fold(norm, torch.linspace(1, 3, 8))
    torch.testing.assert_close(norm.weight.detach().float() * factor, before, rtol=1e-6, atol=0)
    assert not torch.equal(factor, torch.linspace(1, 3, 8))


def test_a_norm_of_another_kind_is_refused() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    norm = GemmaRMSNorm(8)
    with pytest.raises(ValueError, match="GemmaRMSNorm is not proportional"):
        smoothing.fold(norm, torch.full((8,), 2.0))
    assert torch.equal(norm.weight, GemmaRMSNorm(8).weight)
