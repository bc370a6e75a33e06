"""Tests of smoothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import shared_inputs
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.solvers import smoothing
from hemorrhage.compress.solvers.readers import find_norm_readers
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.families import build
from tests.layers import layer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: build(root / name, name))


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


def test_a_fold_into_half_precision_counts_the_rounding() -> None:
    norm = torch.nn.LayerNorm(8).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
        norm.bias.copy_(torch.linspace(-1, 1, 8))
    before = norm.weight.detach().float().clone()
    factor = smoothing.fold(norm, torch.linspace(1, 3, 8), torch.bfloat16)
    torch.testing.assert_close(norm.weight.detach().float() * factor, before, rtol=1e-6, atol=0)
    assert not torch.equal(factor, torch.linspace(1, 3, 8))


def test_a_wide_norm_is_rounded_as_it_will_be_stored() -> None:
    norm = torch.nn.LayerNorm(8)
    smoothing.fold(norm, torch.linspace(1, 3, 8), torch.bfloat16)
    assert torch.equal(norm.weight, norm.weight.bfloat16().float())
    assert norm.weight[-1].item() == pytest.approx(1 / 3, abs=1e-3)


FOLDED = [
    "llama", "phi", "cohere", "minicpm3", "falcon_h1", "mamba2", "mixtral", "qwen2_moe", "olmoe", "granitemoe",
    "phimoe", "llama4_text", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "hunyuan_v1_moe",
    "jamba", "granitemoehybrid",
]  # fmt: skip


@pytest.mark.parametrize("family", FOLDED)
def test_without_rounding_a_model_computes_what_it_did(folder: Any, family: str) -> None:
    model = load(folder(family))
    tokens = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = model(tokens, use_cache=False).logits
        norms = find_norm_readers(model, shared_inputs(model, tokens[:, :4]))
        for readers in norms:
            width = len(layer_of(model, readers.norm).weight)
            scale = torch.rand(width, generator=generator) * 7 + 0.5
            factor = smoothing.move(model, readers, scale, torch.float32)
            for name in readers.linears:
                layer_of(model, name).weight *= factor
        after = model(tokens, use_cache=False).logits
    assert (after - before).abs().max() < 2e-5 * before.abs().max()
    # Parallel attention and MLP read one norm.
    assert len(norms) >= len(blocks(model)) * (1 if family in ("phi", "cohere", "mamba2") else 2)


def test_the_experts_of_a_norm_have_one_scale_and_its_router_takes_it(folder: Any, tmp_path: Path) -> None:
    base, out = folder("qwen2_moe"), tmp_path / "v"
    calibration = calibrated(base, tmp_path / "calibrated")
    spec = {"sweep": "s", "method": "activations", "settings": {"smooth": 0.7}, "seed": 0}
    compress(out, "v", base, None, calibration, [], spec)
    assert "failure" not in read_manifest(out), read_manifest(out)["failure"]

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    block = plain.model.layers[2]
    seen: list[Tensor] = []
    block.post_attention_layernorm.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        plain(Statistics(calibration).tokens().long(), use_cache=False)
    shared = block.mlp.shared_expert
    rounded = [*block.mlp.experts.gate_up_proj, shared.gate_proj.weight, shared.up_proj.weight]
    heaviest = torch.stack([weight.abs().amax(0) for weight in rounded]).amax(0)
    scale = seen[0].abs().amax((0, 1)) ** 0.7 / heaviest**0.3

    before, after, where = Weights(base), Weights(out, base), "model.layers.2"
    norm = before.tensor(f"{where}.post_attention_layernorm.weight")
    smoothed = after.tensor(f"{where}.post_attention_layernorm.weight")
    torch.testing.assert_close(smoothed.float(), norm.float() / scale, rtol=5e-3, atol=1e-6)
    factor = norm.float() / smoothed.float()
    for router in ("mlp.gate", "mlp.shared_expert_gate"):
        expected = (before.tensor(f"{where}.{router}.weight").float() * factor).bfloat16()
        assert torch.equal(after.tensor(f"{where}.{router}.weight"), expected)
    stored = formatted_layers(load(out, as_stored=True, base=base))
    for layer in ("mlp.experts.3.up_proj", "mlp.shared_expert.gate_proj"):
        expected = before.tensor(f"{where}.{layer}.weight").float() * factor
        # Half a step of a row's grid of 8 bits, and what bfloat16 leaves of the step.
        step = expected.abs().amax(1, keepdim=True) / 127.5
        assert ((stored[f"{where}.{layer}"].dense() - expected).abs() < 1.1 * step).all()
