"""Fine-tuning of altered models: against LoRA written out, on held-out text, and what it must not touch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import llama_pro
from hemorrhage.compress.methods.recovery import recovery
from hemorrhage.compress.methods.structured_pruning import width
from hemorrhage.compress.solvers.coupled import find_parts
from hemorrhage.compress.solvers.training import batches, rate
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.mixture_training import FAMILIES, logits, same_layout, trained
from tests.divergence import divergence
from tests.families import new_model
from tests.layers import block_of, generate

FAST: dict[str, Any] = {"steps": 30, "learning_rate": 5e-3, "batch": 4}
"""The tiny model needs larger steps than the default's."""


@pytest.fixture(scope="module")
def texts(tiny: Path) -> Tensor:
    """Text that the tiny model itself wrote, so that it is a good model of it: [112, 48]."""
    model = load(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((112, 1), 1)
        options = {"do_sample": True, "temperature": 0.9, "top_k": 0, "pad_token_id": 0, "eos_token_id": []}
        return generate(model, start, max_new_tokens=47, **options)


@pytest.fixture(scope="module")
def statistics(texts: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    folder = tmp_path_factory.mktemp("recovery")
    save_file({"tokens": texts[:96].int().contiguous()}, folder / "tokens.safetensors")
    return Statistics(folder)


@pytest.fixture(scope="module")
def held_out(texts: Tensor) -> Tensor:
    return texts[96:]


def nll(model: PreTrainedModel, tokens: Tensor) -> float:
    with torch.no_grad():
        loss: Tensor = model(tokens, labels=tokens).loss
    return loss.item()


def narrow(tiny: Path, dtype: str = "float32") -> PreTrainedModel:
    """The tiny model without 60 % of its blocks' weights, its first block spared."""
    model = load(tiny, dtype)
    settings = width.Settings(removed=0.6, importance="random", protect_first=1, protect_last=0)
    width.alter(model, settings, Context())
    return model


def recovered(model: Any, statistics: Statistics, seed: int = 0, **settings: Any) -> Any:
    recovery.alter(model, recovery.Settings(**{**FAST, **settings}), Context(statistics, seed))
    return model


def test_it_recovers_on_text_it_has_not_seen_and_the_control_does_not(
    tiny: Path, statistics: Statistics, held_out: Tensor
) -> None:
    base = load(tiny)
    damaged, treated = narrow(tiny), recovered(narrow(tiny), statistics)
    shuffled = recovered(narrow(tiny), statistics, shuffled=True)
    before, after, control = (nll(m, held_out) - nll(base, held_out) for m in (damaged, treated, shuffled))
    assert before > 0.2
    assert after < 0.75 * before
    assert after < 0.6 * control
    lost, left, left_by_control = (divergence(base, m, held_out) for m in (damaged, treated, shuffled))
    assert left < 0.75 * lost
    assert left < 0.6 * left_by_control
    # What is not a linear layer of a block is as it was, and nothing of the adapters is left.
    names = dict(narrow(tiny).named_parameters())
    assert names.keys() == {name for name, _ in treated.named_parameters()}
    linears = {f"{name}.weight" for name in linears_of(treated)}
    for name, value in treated.named_parameters():
        assert torch.equal(value, names[name]) == (name not in linears)
    assert {type(linear) for linear in linears_of(treated).values()} == {torch.nn.Linear}


def literal_lora(
    tiny: Path, adapters: dict[str, tuple[Tensor, Tensor]], batches: list[Tensor], top_rate: float
) -> dict[str, Tensor]:
    """Weights W + 16/r B A after AdamW steps on ``batches``, everything written out. B starts at zero."""
    model = load(tiny).requires_grad_(False)
    weights = {name: linear.weight.clone() for name, linear in linears_of(model).items()}
    values = {(name, part): v.clone().requires_grad_() for name, ab in adapters.items() for part, v in enumerate(ab)}
    means = {key: torch.zeros_like(value) for key, value in values.items()}
    squares = {key: torch.zeros_like(value) for key, value in values.items()}

    def merged() -> dict[str, Tensor]:
        rank = next(iter(adapters.values()))[0].shape[0]
        return {name: w + 16 / rank * values[name, 1] @ values[name, 0] for name, w in weights.items()}

    steps = len(batches)
    for step, batch in enumerate(batches):
        parameters = {f"{name}.weight": weight for name, weight in merged().items()}
        logits = torch.func.functional_call(model, parameters, (batch,)).logits
        picked = logits[:, :-1].log_softmax(-1).gather(2, batch[:, 1:, None])
        gradients = torch.autograd.grad(-picked.mean(), list(values.values()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        warm = math.ceil(steps / 10)
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        with torch.no_grad():
            for (key, value), gradient in zip(values.items(), gradients, strict=True):
                gradient = gradient * min(1.0, 1 / (norm + 1e-6))
                means[key] = 0.9 * means[key] + 0.1 * gradient
                squares[key] = 0.999 * squares[key] + 0.001 * gradient**2
                mean, square = means[key] / (1 - 0.9 ** (step + 1)), squares[key] / (1 - 0.999 ** (step + 1))
                value -= top_rate * share * mean / (square.sqrt() + 1e-8)
    return {name: weight.detach() for name, weight in merged().items()}


def test_it_is_lora_with_adamw_written_out(tiny: Path, statistics: Statistics) -> None:
    settings: dict[str, Any] = {"steps": 12, "batch": 4, "rank": 3, "learning_rate": 1e-3}
    ours = recovered(load(tiny), statistics, **settings)
    model = load(tiny)
    torch.manual_seed(0)
    layers: dict[str, Any] = {**recovery._adapt(model, 3)}
    adapters = {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in layers.items()
    }
    assert len(adapters) == 35
    assert all((b == 0).all() for _, b in adapters.values())
    source = batches(statistics.tokens(), 4, 0)
    expected = literal_lora(tiny, adapters, [next(source) for _ in range(12)], 1e-3)
    base = linears_of(load(tiny))
    for name, linear in linears_of(ours).items():
        change = (expected[name] - base[name].weight).abs().max()
        assert change > 1e-3
        # Where a gradient is nothing but noise, Adam makes a step of either sign of it.
        off = (linear.weight - expected[name]).abs() > 0.02 * change
        assert off.float().mean() < 0.01, name


def test_it_follows_its_seed(tiny: Path, statistics: Statistics) -> None:
    torch.manual_seed(1)
    first = recovered(narrow(tiny), statistics, steps=5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = recovered(narrow(tiny), statistics, steps=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = recovered(narrow(tiny), statistics, seed=1, steps=5)
    weights = [m.model.layers[2].mlp.up_proj.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def halved(tiny: Path, pattern: bool = False) -> PreTrainedModel:
    """Half of the weights of every linear layer but the first is zero, of each row or of each 4."""
    model = load(tiny)
    with torch.no_grad():
        for linear in list(linears_of(model).values())[1:]:
            size = linear.weight.abs()
            groups = size.unflatten(1, (-1, 4)) if pattern else size.unsqueeze(1)
            drop = groups.argsort(dim=2)[..., : groups.shape[2] // 2]
            mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, drop, True)
            linear.weight.masked_fill_(mask.view_as(size), 0)
    return model


@pytest.mark.parametrize("pattern", [False, True])
def test_sparse_weights_stay_zero(tiny: Path, statistics: Statistics, held_out: Tensor, pattern: bool) -> None:
    before = halved(tiny, pattern)
    after = recovered(halved(tiny, pattern), statistics, steps=15)
    for (name, old), new in zip(linears_of(before).items(), linears_of(after).values(), strict=True):
        assert torch.equal(old.weight == 0, new.weight == 0), name
        assert not torch.equal(old.weight, new.weight), name
    assert nll(after, held_out) < nll(before, held_out)


def test_what_was_trained_is_what_is_stored(tiny: Path, statistics: Statistics) -> None:
    """Sparse and dense layers: the adapted model and the merged one compute the same."""
    model = halved(tiny).requires_grad_(False)
    layers = recovery._adapt(model, 4)
    assert sum(hasattr(layer, "mask") for layer in layers.values()) == len(layers) - 1
    recovery.train(model, statistics.tokens(), recovery.Settings(**FAST | {"steps": 4}), Context())
    with torch.no_grad():
        adapted = model(statistics.tokens()[:2]).logits
        for name, layer in layers.items():
            model.set_submodule(name, recovery._merged(layer))
        merged = model(statistics.tokens()[:2]).logits
        original = halved(tiny)(statistics.tokens()[:2]).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert (merged - original).abs().max() > 0.05


def test_silent_blocks_are_trained(tiny: Path, statistics: Statistics) -> None:
    model = load(tiny)
    llama_pro.alter(model, llama_pro.Settings(added=0.2), Context())
    recovered(model, statistics, steps=5)
    assert (block_of(model, 5).mlp.down_proj.weight != 0).float().mean() > 0.9


def test_weights_come_back_in_the_type_they_are_stored_in(tiny: Path, statistics: Statistics) -> None:
    before, after = narrow(tiny, "bfloat16"), recovered(narrow(tiny, "bfloat16"), statistics, steps=5)
    kinds = {name: value.dtype for name, value in before.state_dict().items()}
    assert kinds == {name: value.dtype for name, value in after.state_dict().items()}
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert after.lm_head.weight is after.model.embed_tokens.weight
    assert not torch.equal(before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight)


class Form(torch.nn.Module):
    """What marks a form: it says how it is stored."""

    def stored(self) -> dict[str, Tensor]:
        return {}


def test_packed_weights_are_refused(tiny: Path, statistics: Statistics) -> None:
    model = load(tiny)
    model.set_submodule("model.layers.2.mlp.up_proj", Form())
    with pytest.raises(ValueError, match=r"model\.layers\.2\.mlp\.up_proj: .* this is a Form; pack after it"):
        recovered(model, statistics)


def test_a_loss_that_is_not_finite_stops_it(tiny: Path, statistics: Statistics) -> None:
    model = load(tiny)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="the loss is nan at step 1 of 30"):
        recovered(model, statistics)


def test_batches_go_through_all_windows_before_one_comes_again() -> None:
    windows = torch.arange(10)[:, None].expand(10, 3)
    source = batches(windows, 4, 0)
    drawn = torch.cat([next(source)[:, 0] for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert not torch.equal(drawn[:10], drawn[10:])
    assert len(next(batches(windows, 25, 0))) == 25


def test_shuffled_windows_have_the_same_tokens(statistics: Statistics) -> None:
    tokens = statistics.tokens()
    control = recovery.training_windows(tokens, True, 0)
    assert torch.equal(control.sort(1).values, tokens.sort(1).values)
    assert (control != tokens).float().mean() > 0.8
    assert torch.equal(recovery.training_windows(tokens, False, 0), tokens)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(step, 50) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert sorted(rates[5:], reverse=True) == rates[5:]
    assert 0 < rates[-1] < 0.01
    assert rate(0, 1) == 1.0


def test_a_variant_on_a_variant_loads(tiny: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path / "calibration")
    pruning = {"removed": 0.5, "importance": "magnitude", "protect_first": 0, "protect_last": 0}
    spec = {"sweep": "s", "seed": 0}
    compress(tmp_path / "parent", "p", tiny, None, None, [], {**spec, "method": "width", "settings": pruning})
    settings: dict[str, Any] = {"steps": 3, "batch": 2}
    out = tmp_path / "out"
    tuning = {**spec, "method": "recovery", "settings": settings, "on": "p"}
    compress(out, "v", tiny, tmp_path / "parent", calibration, [], tuning)
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    model = load(out, base=tiny)
    verify(model, out)
    assert manifest["axis"] == "steps"
    assert manifest["severity"] == 3
    assert manifest["parameters"] == read_manifest(tmp_path / "parent")["parameters"]
    assert {shape.groups for shape in width.shapes_of(model, find_parts(model))} == {2}


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_trained_and_stay_in_their_familys_layout(tmp_path: Path, family: str) -> None:
    made = trained(tmp_path, family, "recovery", steps=8, rank=4, learning_rate=3e-3, batch=3)
    assert same_layout(made)

    def loss(folder: Path) -> float:
        predicted = logits(folder, made.tokens)[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(predicted, made.tokens[:, 1:].flatten()).item()

    assert loss(made.exported) < loss(made.original) - 0.05


def test_settings() -> None:
    settings = recovery.Settings()
    assert (settings.steps, settings.rank, settings.learning_rate) == (200, 8, 1e-4)
    assert (settings.axis, settings.severity, settings.statistics) == ("steps", 200.0, ("tokens",))
    assert (settings.label, settings.curve) == ("200 steps, rank 8", "rank 8")
    assert recovery.Settings(shuffled=True).curve == "rank 8, shuffled tokens"
    assert recovery.Settings(learning_rate=1e-3, batch=2).curve == "rank 8, learning rate 0.001, batches of 2"
    assert recovery.Settings(rank=64).check({"hidden_size": 64}) is None
    assert recovery.Settings(rank=65).check({"hidden_size": 64}) == "rank 65 is more than the hidden_size of 64"
    for wrong in ({"steps": 0}, {"rank": 0}, {"learning_rate": 0}, {"batch": 0}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match="validation error"):
            recovery.Settings.model_validate(wrong)


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_layers_that_peft_takes_for_others_are_adapted(family: str) -> None:
    """Of these families it refuses ``out_proj``, and looks for experts under transformers' names."""
    model = new_model(family).float()
    names = list(linears_of(model))
    adapters = recovery._adapt(model, 4)
    assert list(adapters) == names
    assert all(hasattr(adapter, "lora_A") for adapter in adapters.values())
