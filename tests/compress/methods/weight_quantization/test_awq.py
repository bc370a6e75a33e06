"""AWQ: its searches against their definition on explicit inputs, exact folding, and llmcompressor's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import awq, rtn
from hemorrhage.compress.solvers import folding
from hemorrhage.compress.solvers.number_formats import (
    FLOATS,
    columns_of_scale,
    layer_total,
    nearest_in_groups,
    round_to_nearest,
)
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.divergence import divergence
from tests.layers import layer_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("awq"))


def divergence_on(base: PreTrainedModel, other: PreTrainedModel, calibration: Path) -> float:
    """Mean KL(base ‖ other), nats per token."""
    tokens = load_file(calibration / "tokens.safetensors")["tokens"].long()
    return divergence(base, other, tokens)


def inputs(tokens: int = 200, columns: int = 48) -> Tensor:
    """Correlated inputs, some features much larger than others, one always zero: [tokens, columns]."""
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    X *= torch.logspace(-1.5, 1.5, columns)[torch.randperm(columns, generator=generator)]
    X[:, 7] = 0
    return X


def weights(*rows: int, columns: int = 48) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(row, columns, generator=generator) for row in rows]


def literal_round(W: Tensor, bits: int, width: int, symmetric: bool) -> Tensor:
    """Every group by the library's formula for scale and zero point, one after the other."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    half = 2 ** (bits - 1)
    result = torch.empty_like(W)
    for start in range(0, W.shape[1], width):
        part = W[:, start : start + width]
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric)
        scale, zero = calculate_qparams(part.amin(1), part.amax(1), args)
        scale, zero = scale.unsqueeze(1), zero.unsqueeze(1).float()
        result[:, start : start + width] = scale * ((part / scale + zero).round().clamp(-half, half - 1) - zero)
    return result


def literal_scale(parts: list[Tensor], X: Tensor, bits: int, width: int, symmetric: bool) -> Tensor:
    """The search of the paper's code with outputs of the layers instead of moments."""
    best, least = torch.empty(0), float("inf")
    for ratio in range(20):
        scale = X.abs().mean(0).pow(ratio / 20).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = 0.0
        for W in parts:
            rounded = literal_round(W * scale, bits, width, symmetric) / scale
            loss += (X @ rounded.T - X @ W.T).pow(2).sum().item()
        if loss < least:
            best, least = scale, loss
    return best


def literal_clip(W: Tensor, X: Tensor, bits: int, width: int, symmetric: bool) -> Tensor:
    """The search of the paper's code: outputs of every group, [rows, tokens, groups]."""
    groups = W.unflatten(1, (-1, width))
    features = X.unflatten(1, (-1, width))
    wanted = torch.einsum("tgw,rgw->rtg", features, groups)
    largest = groups.abs().amax(2, keepdim=True)
    best: Tensor = largest.clone()
    least = torch.full(largest.shape[:2], float("inf"))
    for shrunk in range(10):
        limit = largest * (1 - shrunk / 20)
        kept = groups.clamp(-limit, limit)
        rounded = literal_round(kept.flatten(1), bits, width, symmetric).unflatten(1, (-1, width))
        error = (torch.einsum("tgw,rgw->rtg", features, rounded) - wanted).pow(2).mean(1)
        best = torch.where((error < least).unsqueeze(2), limit, best)
        least = torch.minimum(error, least)
    clipped: Tensor = groups.clamp(-best, best)
    return clipped.flatten(1)


CASES = [(3, 16, False), (2, 8, True), (4, 48, False)]


@pytest.mark.parametrize(("bits", "width", "symmetric"), CASES)
def test_the_scale_is_that_of_the_search_with_outputs(bits: int, width: int, symmetric: bool) -> None:
    X, parts = inputs(), weights(24, 12)
    settings = awq.Settings(bits=bits, group_size=width, symmetric=symmetric)
    moment = X.T @ X / len(X)
    ours = awq.best_scale(parts, moment, X.abs().mean(0), width, settings, torch.float32)
    expected = literal_scale(parts, X, bits, width, symmetric)
    torch.testing.assert_close(ours, expected)
    assert not torch.equal(ours, torch.ones(48))


@pytest.mark.parametrize(("bits", "width", "symmetric"), CASES)
def test_the_clip_is_that_of_the_search_with_outputs(bits: int, width: int, symmetric: bool) -> None:
    X, (W,) = inputs(), weights(24)
    settings = awq.Settings(bits=bits, group_size=width, symmetric=symmetric)
    ours = awq.clipped(W, X.T @ X / len(X), width, settings, torch.float32)
    expected = literal_clip(W, X, bits, width, symmetric)
    # Two shares of the largest weight can have the same error up to the last digit.
    assert (ours - expected).abs().gt(1e-5).any(1).sum() <= 1
    assert not torch.equal(ours, W)


@pytest.mark.parametrize("form", ["fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8"])
def test_scales_of_a_format_are_those_of_the_search_with_outputs(form: str) -> None:
    X, parts = inputs(columns=64), weights(24, 12, columns=64)
    settings = awq.Settings.model_validate({"format": form})
    assert settings.number is not None
    best, least = torch.empty(0), float("inf")
    for ratio in range(20):
        scale = X.abs().mean(0).pow(ratio / 20).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = round_to_nearest([W * scale for W in parts], settings.number, torch.float32)
        loss = sum(
            (X @ (layer.dense() / scale - W).T).pow(2).sum().item() for W, layer in zip(parts, rounded, strict=True)
        )
        if loss < least:
            best, least = scale, loss
    width = columns_of_scale("layer", 64, settings)
    ours = awq.best_scale(parts, X.T @ X / len(X), X.abs().mean(0), width, settings, torch.float32)
    torch.testing.assert_close(ours, best)


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4"])
def test_clipping_in_a_format_errs_less(form: str) -> None:
    X, (W,) = inputs(columns=64), weights(24, columns=64)
    settings = awq.Settings.model_validate({"format": form})
    assert settings.number is not None
    H, total = X.T @ X / len(X), layer_total([W], settings.number)
    width = settings.number.width or 64
    clipped = awq.clipped(W, H, width, settings, torch.bfloat16, total=total)
    blocks = torch.block_diag(*[H[i : i + width, i : i + width] for i in range(0, 64, width)])

    def error(weight: Tensor) -> float:
        groups = weight.unflatten(1, (-1, width))
        values = nearest_in_groups(groups, settings.number or FLOATS[form], torch.bfloat16, total, "max").flatten(1)
        return float(((values - W) @ blocks * (values - W)).sum())

    assert error(clipped) < 0.98 * error(W)


@pytest.mark.parametrize("inputs_as", ["int8_static", "nvfp4"])
def test_fixed_ranges_are_those_of_the_divided_inputs(
    tiny: Path, calibration: Path, tmp_path: Path, inputs_as: str
) -> None:
    """Of the model as it is written, with the inputs left exact: the scale that its largest input has."""
    settings = {"bits": 8, "group_size": "channel", "inputs": inputs_as}
    compress(tmp_path / "out", "v", tiny, None, calibration, [], {"sweep": "s", "method": "awq", "seed": 0,
                                                                  "settings": settings})  # fmt: skip
    model = load(tmp_path / "out", base=tiny)
    statistics, tokens = Statistics(calibration), load_file(calibration / "tokens.safetensors")["tokens"].long()
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda _, given: seen.__setitem__(name, given[0].abs().amax())

    first = "model.layers.0.self_attn.q_proj"
    layer_of(model, first).register_forward_pre_hook(note(first), prepend=True)
    with torch.no_grad():
        model(tokens)
    stored = Weights(tmp_path / "out", tiny)
    if inputs_as == "int8_static":
        found = stored.tensor(f"{first}.input_scale").float() * 255 / 2
    else:
        found = 448 * 6 / stored.tensor(f"{first}.input_global_scale")
    torch.testing.assert_close(found.squeeze(), seen[first], rtol=1e-2, atol=0)
    assert abs(seen[first] / statistics.max_abs(first).max() - 1) > 0.05


def models() -> list[PreTrainedModel]:
    """Without grouped queries, with every bias that the model type knows."""
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    torch.manual_seed(0)
    made = [
        LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True, mlp_bias=True)),
        Qwen2ForCausalLM(Qwen2Config(**shape)),
    ]
    for model in made:
        for name, value in model.named_parameters():
            if name.endswith("bias") or "layernorm" in name:
                torch.nn.init.normal_(value, mean=float("layernorm" in name), std=0.3)
    return [model.eval() for model in made]


def spread(columns: int) -> Tensor:
    return torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=torch.Generator().manual_seed(1))]


@torch.no_grad()
def fold_everything(model: PreTrainedModel, shared: dict[str, list[str]]) -> int:
    makers = folding.find_makers(model, shared)
    for first, maker in makers.items():
        awq.fold(model, maker, shared[first], spread(layer_of(model, first).in_features))
    return len(makers)


@pytest.mark.parametrize("index", [0, 1])
def test_folding_changes_nothing(index: int) -> None:
    from hemorrhage.calibrate.statistics import shared_inputs

    model = models()[index]
    tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens).logits
        before = model.model.layers[1].mlp.up_proj.weight.clone()
        assert fold_everything(model, shared_inputs(model, tokens)) == 8
        assert not torch.equal(before, model.model.layers[1].mlp.up_proj.weight)
        torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-5)


def test_folding_skips_values_that_queries_share(tiny: Path) -> None:
    from hemorrhage.calibrate.statistics import shared_inputs

    model = load(tiny)
    tokens = torch.randint(500, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens).logits
        assert "model.layers.0.self_attn.o_proj" not in folding.find_makers(model, shared_inputs(model, tokens))
        assert fold_everything(model, shared_inputs(model, tokens)) == 3 * len(model.model.layers)
        torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-4)


def test_folding_into_a_norm_is_exact_in_the_norms_dtype() -> None:
    model = models()[0]
    norm = model.model.layers[0].input_layernorm
    norm.bfloat16()
    before = norm.weight.float()
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    with torch.no_grad():
        wanted = spread(32)
        applied = awq.fold(model, "model.layers.0.input_layernorm", names, wanted)
    assert norm.weight.dtype == torch.bfloat16
    torch.testing.assert_close(norm.weight.float() * applied, before)
    torch.testing.assert_close(applied, wanted, rtol=2**-7, atol=0)
    assert not torch.equal(applied, wanted)


@pytest.mark.usefixtures("trained")
def test_is_as_good_as_the_peer(tiny: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    # The peer pins memory even where there is no accelerator to pin it for.
    monkeypatch.setattr(IntermediatesCache, "pin_memory", lambda *_: None)
    peer = load(tiny)
    scheme = {"weights": {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 4}}
    tokens = load_file(calibration / "tokens.safetensors")["tokens"].tolist()
    groups = {"group_0": {"targets": ["Linear"], **scheme}}
    oneshot(
        model=peer,
        dataset=Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}),
        recipe=[AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
        num_calibration_samples=6,
        max_seq_length=32,
        sequential_targets=["LlamaDecoderLayer"],
    )
    base = load(tiny)

    def damage(method: Any, **settings: Any) -> float:
        model = load(tiny)
        method.alter(model, method.Settings(bits=3, group_size=4, **settings), Context(Statistics(calibration)))
        return divergence_on(base, model, calibration)

    theirs, nearest = divergence_on(base, peer, calibration), damage(rtn)
    # The peer does not clip.
    assert damage(awq) < theirs
    assert damage(awq, clip=False) < 1.05 * theirs
    assert damage(awq, scale=False) < nearest
    assert theirs < nearest


def test_a_checkpoint_reads_back_and_eight_bits_change_next_to_nothing(
    tiny: Path, calibration: Path, tmp_path: Path
) -> None:
    spec = {"sweep": "s", "method": "awq", "seed": 0}
    spec |= {"settings": {"bits": 8, "group_size": 4}}
    compress(tmp_path / "out", "v", tiny, None, calibration, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    # Norms are altered too.
    assert manifest["changed"] > 0.5
    assert divergence_on(load(tiny), load(tmp_path / "out", base=tiny), calibration) < 1e-4


def test_without_scales_and_clipping_it_is_rtn(tiny: Path, calibration: Path) -> None:
    settings = awq.Settings(bits=3, group_size=4, scale=False, clip=False)
    ours, nearest = load(tiny), load(tiny)
    awq.alter(ours, settings, Context(Statistics(calibration)))
    rtn.alter(nearest, rtn.Settings(bits=3, group_size=4), Context())
    for name in linears_of(load(tiny)):
        assert torch.equal(layer_of(ours, name).dense(), layer_of(nearest, name).dense())


def test_settings() -> None:
    settings = awq.Settings(bits=4, group_size=64, clip=False)
    assert settings.statistics == ("hessian", "activations")
    assert settings.curve == "groups of 64, without clipping"
    assert awq.Settings(bits=4, group_size=64).label == "4 bit, groups of 64"
    assert awq.Settings(bits=4, scale=False, clip=False).curve.endswith("without scales, without clipping")
    config = LlamaConfig(hidden_size=64, intermediate_size=172, num_attention_heads=8).to_dict()
    assert awq.Settings(bits=4, group_size=4).check(config) is None
    problem = awq.Settings(bits=4, group_size=64).check(config)
    assert problem == "group_size 64 does not divide the model's intermediate_size of 172"


def test_weights_that_are_rounded_some_rows_at_a_time_change_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 32, generator=generator).bfloat16()
    scale, settings = torch.rand(32, generator=generator) + 0.5, awq.Settings(bits=3, group_size=16)
    (whole,) = awq._changes([weight], scale, 16, settings, torch.bfloat16)
    monkeypatch.setattr(awq, "CACHED", 5 * 32)
    (by_rows,) = awq._changes([weight], scale, 16, settings, torch.bfloat16)
    assert torch.equal(whole, by_rows)
