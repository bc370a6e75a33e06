"""Heads and channels taken out: against masking, against the measured loss, and that the result loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hemorrhage.calibrate.gradients import gradients
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.structured_pruning import width
from hemorrhage.compress.solvers.coupled import find_parts
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import unfuse
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests.calibration import calibrated
from tests.families import FAMILIES, new_model
from tests.family_matrix.study import Study, plain
from tests.layers import block_of
from tests.whole import whole

TOKENS = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))
TAYLOR = ("taylor1", "taylor2", "vector")


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("width"))


@pytest.fixture(scope="module")
def parts(tiny: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gradients") / "loss"
    gradients(folder, tiny, calibration, {"part": "loss"})
    return {"loss": folder}


def pruned(model: Any, statistics: Statistics | None = None, seed: int = 0, **settings: Any) -> Any:
    model = load(model) if isinstance(model, Path) else model
    settings = {"protect_first": 0, "protect_last": 0, **settings}
    width.alter(model, width.Settings(**settings), Context(statistics, seed))
    return model


def shape_of(model: PreTrainedModel, index: int) -> width.Shape:
    return width.shapes_of(model, find_parts(model))[index]


def weights(model: PreTrainedModel) -> int:
    return sum(linear.weight.numel() for linear in linears_of(model).values())


def silenced(model: PreTrainedModel, index: int, groups: list[int], channels: list[int]) -> None:
    """What taking groups and channels out of a block means: nothing reads what they compute."""
    block = block_of(model, index)
    head_dim, queries = block.self_attn.head_dim, block.self_attn.num_key_value_groups
    with torch.no_grad():
        for group in groups:
            for head in range(group * queries, (group + 1) * queries):
                block.self_attn.o_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
        block.mlp.down_proj.weight[:, channels] = 0


def literal(
    model: PreTrainedModel, index: int, statistics: Statistics | None, kind: str
) -> tuple[list[float], list[float]]:
    """Importance of every group and channel of a block, a vector at a time."""
    block = block_of(model, index)
    attention, mlp = block.self_attn, block.mlp
    names = {module: name for name, module in block.named_modules(prefix=f"model.layers.{index}")}
    gradients: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def vector(linear: nn.Linear, row: int | None, column: int | None) -> float:
        where = (row, slice(None)) if column is None else (slice(None), column)
        w = linear.weight[where].double()
        if kind == "magnitude":
            return (w * w).sum().item()
        if linear not in gradients:
            assert statistics is not None
            name = names[linear]
            gradients[linear] = statistics.gradient(name), statistics.gradient_rms(name)
        g, root = (value[where].double() for value in gradients[linear])
        h = root**2
        if kind == "vector":
            return abs((g * w).sum().item())
        return (g * w - (0.5 * h * w * w if kind == "taylor2" else 0)).abs().sum().item()

    d, queries = attention.head_dim, attention.num_key_value_groups
    groups = []
    for group in range(attention.k_proj.out_features // d):
        total = 0.0
        for place in range(group * d, (group + 1) * d):
            total += vector(attention.k_proj, place, None) + vector(attention.v_proj, place, None)
        for place in range(group * queries * d, (group + 1) * queries * d):
            total += vector(attention.q_proj, place, None) + vector(attention.o_proj, None, place)
        groups.append(total)
    channels = [
        vector(mlp.gate_proj, c, None) + vector(mlp.up_proj, c, None) + vector(mlp.down_proj, None, c)
        for c in range(mlp.up_proj.out_features)
    ]
    return groups, channels


def lowest(scores: list[float], number: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: scores[place])[:number]


@pytest.mark.parametrize("kind", [*TAYLOR, "magnitude"])
def test_the_least_important_groups_go_and_their_neighbours_stay_attached(
    tiny: Path, calibration: Path, parts: dict[str, Path], kind: str
) -> None:
    """Against the whole model in which what goes is silent, chosen by a literal sum."""
    statistics = Statistics(calibration, parts)
    whole = load(tiny)
    for index in range(5):
        groups, channels = literal(whole, index, statistics, kind)
        silenced(whole, index, lowest(groups, 1), lowest(channels, 60))
    # One of 4 groups is 3072 of a block's 45312 weights, 60 of 172 channels are 11520.
    model = pruned(tiny, statistics, importance=kind, removed=14592 / 45312)
    assert model.model.layers[0].mlp.up_proj.out_features == 112
    assert model.model.layers[0].self_attn.k_proj.out_features == 24
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, whole(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_channels_and_heads_that_are_zero_are_taken_out_without_a_trace(tiny: Path) -> None:
    whole = load(tiny)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        stack: Any = blocks(whole)
        for block in stack:
            channels = torch.randperm(172, generator=generator)[:60]
            group = int(torch.randint(4, (), generator=generator))
            for linear in (block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight[channels] = 0
            block.mlp.down_proj.weight[:, channels] = 0
            for linear in (block.self_attn.k_proj, block.self_attn.v_proj):
                linear.weight[8 * group : 8 * group + 8] = 0
            block.self_attn.q_proj.weight[16 * group : 16 * group + 16] = 0
            block.self_attn.o_proj.weight[:, 16 * group : 16 * group + 16] = 0
        expected = whole(TOKENS).logits
        model = pruned(whole, importance="magnitude", removed=14592 / 45312)
        assert weights(model) == 5 * (45312 - 14592)
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("configuration", "architecture", "more"),
    [
        (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
        (Qwen2Config, Qwen2ForCausalLM, {}),
        (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 12}),
    ],
)
def test_other_llama_like_models(configuration: Any, architecture: Any, more: dict[str, Any]) -> None:
    """Biases of q, k and v (Qwen 2), norms of queries and keys (Qwen 3), sliding windows."""
    torch.manual_seed(0)
    model = architecture(configuration(**SMALL, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 5)
        whole = architecture(model.config).eval()
        whole.load_state_dict(model.state_dict())
        for index in range(2):
            groups, channels = literal(whole, index, None, "magnitude")
            silenced(whole, index, lowest(groups, 1), lowest(channels, 25))
        shape = shape_of(model, 0)
        share = (shape.group_weights + 25 * shape.channel_weights) / shape.weights
        pruned(model, importance="magnitude", removed=share)
        torch.testing.assert_close(model(TOKENS).logits, whole(TOKENS).logits, rtol=1e-4, atol=1e-4)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (4, 2, 55)
    assert config.head_dim == more.get("head_dim", 8)
    assert set(architecture(config).state_dict()) == set(model.state_dict())
    architecture(config).load_state_dict(model.state_dict())


class Norm(nn.Module):
    """transformers computes this one in float32 whatever the model is in."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight
        self.epsilon: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


@pytest.fixture(scope="module")
def double(tiny: Path) -> Any:
    model = load(tiny).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            model.set_submodule(name, Norm(module))
    model.requires_grad_(False)
    return model


def loss(model: PreTrainedModel) -> Tensor:
    logits = model(TOKENS).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())


def test_vector_importance_is_the_loss_to_first_order(double: Any) -> None:
    """Shrinking a row or a column by t changes the loss by t times its importance."""
    mlp = block_of(double, 2).mlp
    for linear, axis in ((mlp.gate_proj, 1), (mlp.down_proj, 0)):
        weight = linear.weight.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(double), weight)
        weight.requires_grad_(False)
        ours = width.importance(weight, gradient, None, "vector", axis)
        for place in (0, 17, 101):
            original = weight.clone()
            vector = weight[place] if axis else weight[:, place]
            changes = []
            for t in (1e-5, -1e-5):
                vector *= 1 - t
                changes.append(loss(double).item())
                weight.copy_(original)
            measured = abs(changes[0] - changes[1]) / 2e-5
            assert ours[place].item() == pytest.approx(measured, rel=1e-5)


def test_element_importance_is_the_loss_to_second_order(double: Any) -> None:
    """With the Hessian's diagonal in the place of the squared gradients: the cost of a part of a weight.

    The error is of the third order for element², of the second for element¹.
    """
    linear = block_of(double, 1).mlp.up_proj
    weight = linear.weight.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        (gradient,) = torch.autograd.grad(loss(double), weight, create_graph=True)
    before = loss(double).item()
    checked = 0
    generator = torch.Generator().manual_seed(0)
    while checked < 3:
        row, column = (int(torch.randint(size, (), generator=generator)) for size in weight.shape)
        (second,) = torch.autograd.grad(gradient[row, column], weight, retain_graph=True)
        curvature = second[row, column].item()
        if curvature <= 0.1 * second.abs().max().item():
            continue
        checked += 1
        errors: dict[str, list[float]] = {"taylor1": [], "taylor2": []}
        for step in (0.02, 0.01):
            with torch.no_grad():
                w = weight[row, column].item()
                weight[row, column] -= step
                cost = loss(double).item() - before
                weight[row, column] = w
            for kind, found in errors.items():
                ours = width.importance(
                    torch.tensor([[step]], dtype=torch.float64),
                    gradient[row, column].detach().view(1, 1),
                    torch.tensor([[curvature]], dtype=torch.float64).sqrt(),
                    kind,
                    1,
                )
                found.append(abs(ours.item() - abs(cost)))
        assert errors["taylor2"][0] < 0.3 * errors["taylor1"][0]
        assert 6 < errors["taylor2"][0] / errors["taylor2"][1] < 10
        assert 3 < errors["taylor1"][0] / errors["taylor1"][1] < 5
    weight.requires_grad_(False)


@pytest.mark.parametrize("removed", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("spared", [(0, 0), (1, 0)])
def test_the_removed_share_is_that_asked_for(tiny: Path, removed: float, spared: tuple[int, int]) -> None:
    before = weights(load(tiny))
    settings = width.Settings(removed=removed, protect_first=spared[0], protect_last=spared[1])
    problem = settings.check(json.loads((tiny / "config.json").read_text()))
    if removed == 0.8 and spared == (1, 0):
        assert problem is not None
        assert "\n" not in problem
        assert "is 1 of the others" in problem
        return
    assert problem is None
    model = pruned(tiny, removed=removed, importance="random", protect_first=spared[0], protect_last=spared[1])
    # Channels make up for whole heads, in each of the blocks: half a channel off at most.
    assert abs((before - weights(model)) - removed * before) <= 5 * 0.5 * 3 * 64
    shapes = {shape_of(model, index) for index in range(spared[0], 5)}
    assert len(shapes) == 1
    (shape,) = shapes
    share = removed * 5 / (5 - sum(spared))
    assert shape.groups == 4 - min(3, int(4 * share + 0.5))
    assert block_of(model, 4).self_attn.q_proj.out_features == 2 * 8 * shape.groups
    if spared[0]:
        assert shape_of(model, 0) == shape_of(load(tiny), 0)


def test_what_cannot_be_is_refused_in_one_line(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())

    def problem(**settings: Any) -> str:
        found = width.Settings(**settings).check(config)
        assert found is not None
        assert "\n" not in found
        return found

    assert "spare all 5 layers" in problem(removed=0.2)
    limit = problem(removed=0.9, protect_first=1, protect_last=0).rsplit("at most ", 1)[1].split()[0]
    most = width.Settings(removed=float(limit) - 1e-3, protect_first=1, protect_last=0)
    assert most.check(config) is None
    assert "less than one of 172" in problem(removed=1e-4, protect_first=0, protect_last=0)
    # What config.json does not tell is left to the model itself.
    assert width.Settings(removed=0.2).check({**config, "num_local_experts": 8}) is None
    assert width.Settings(removed=0.2).check({"model_type": "mamba", "num_hidden_layers": 4}) is None
    with pytest.raises(ValueError, match="spare all 5 layers"):
        pruned(tiny, removed=0.2, protect_first=4, protect_last=2, importance="random")
    for wrong in ({"removed": 0}, {"removed": 1}, {"removed": 0.2, "protect_first": -1}):
        with pytest.raises(ValueError, match="validation error"):
            width.Settings.model_validate(wrong)


def test_a_block_without_an_mlp_is_refused_by_name(tiny: Path) -> None:
    model = load(tiny)
    model.model.layers[3].mlp = nn.Identity()
    with pytest.raises(RefusedError, match=r"out of MLPs, and model\.layers\.3 has no plain MLP"):
        pruned(model, removed=0.2, importance="random")
    settings = width.Settings(removed=0.1, importance="magnitude", protect_first=0, protect_last=0)
    for name, what in (("mixtral", "experts"), ("mamba", "no plain MLP")):
        other = new_model(name)
        unfuse(other)
        with pytest.raises(RefusedError, match=f"has {what}"):
            settings.check_model(other)


FAST = ("opt", "gpt_neox", "phi3", "gemma2", "falcon", "biogpt")
"""Heads in fused layers, gate and up in one, norms behind what is written, parallel blocks, heads that stay."""


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.families) for name in FAMILIES if name not in FAST)]
)
def test_a_family_whose_silent_parts_are_taken_out_computes_what_it_did(name: str) -> None:
    """The channels, and where heads can go a head, that nothing reads are the least important."""
    model = new_model(name)
    unfuse(model)
    model = model.float()
    parts = find_parts(model)
    if any(each.channels is None for each in parts):
        pytest.skip("width refuses it")
    with torch.no_grad():
        for block, part in zip(blocks(model), parts, strict=True):
            for coupled in (part.heads, part.channels):
                if coupled is None or len(coupled) == 1:
                    continue
                gone = torch.arange(len(coupled) // 4)
                block.get_parameter(f"{coupled.reader}.weight")[:, coupled.columns[gone].flatten()] = 0
                for layer, rows in coupled.rows.items():
                    block.get_parameter(f"{layer}.weight")[rows[gone].flatten()] = 0
        expected = model(TOKENS, use_cache=False).logits
        shape = shape_of(model, 0)
        share = (shape.groups // 4 * shape.group_weights + shape.channels // 4 * shape.channel_weights) / shape.weights
        before = weights(model)
        pruned(model, importance="magnitude", removed=share)
        assert weights(model) == pytest.approx((1 - share) * before, rel=1e-3)
        torch.testing.assert_close(model(TOKENS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "spared", "key"),
    [("opt", 0, "ffn_dim"), ("gpt_neox", 0, "intermediate_size"), ("phi3", 1, ""), ("gemma2", 1, "")],
)
def test_pruned_families_in_16_bits_from_disk(name: str, spared: int, key: str, tmp_path: Path) -> None:
    study = Study(name, tmp_path)
    settings = {"removed": 0.15, "importance": "magnitude", "protect_first": spared, "protect_last": spared}
    spec = {"sweep": "s", "method": "width", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", study.base, None, None, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert manifest["severity"] == pytest.approx(0.15, abs=0.01)
    model = load(tmp_path / "out", base=study.base)
    verify(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    channels = find_parts(model)[0].channels
    assert channels is not None
    assert not key or config[key] == len(channels) < 112
    if name == "opt":
        # config.json says all of it.
        assert "hemorrhage" not in config
        export(tmp_path / "out", tmp_path / "exported", "dense", study.base)
        verify(plain(tmp_path / "exported"), tmp_path / "out")


def test_gradients_of_another_width_are_refused(tiny: Path, calibration: Path, parts: dict[str, Path]) -> None:
    model = pruned(tiny, removed=0.2, importance="random")
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.o_proj: the gradients are those of a model"):
        pruned(model, Statistics(calibration, parts), removed=0.2, importance="vector")


def test_random_follows_its_seed(tiny: Path) -> None:
    drawn = [pruned(tiny, seed=s, removed=0.3, importance="random").state_dict() for s in (0, 0, 1)]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not all(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_a_narrow_model_can_be_pruned_again(tiny: Path) -> None:
    model = pruned(tiny, removed=0.2, importance="magnitude", protect_first=1)
    left = weights(model)
    pruned(model, removed=0.3, importance="magnitude")
    assert weights(model) == pytest.approx(0.7 * left, abs=5 * 96)
    assert model(TOKENS).logits.isfinite().all()


def test_bfloat16_stays_bfloat16(tiny: Path) -> None:
    model = pruned(load(tiny, "bfloat16"), removed=0.3, importance="magnitude")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_generation_with_the_cache_is_that_without(tiny: Path) -> None:
    model = pruned(tiny, removed=0.3, importance="magnitude", protect_first=1, protect_last=1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(TOKENS, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(TOKENS, use_cache=False, **options))


@pytest.mark.parametrize(
    ("settings", "config", "alone"),
    [
        # Half of the heads divide the hidden size, so that transformers takes the configuration.
        ({"removed": 0.5, "protect_first": 0, "protect_last": 0}, (4, 2), True),
        # 6 of 8 heads don't divide 64; the layers are narrower than the configuration says.
        ({"removed": 0.25, "protect_first": 0, "protect_last": 0}, (8, 4), False),
        ({"removed": 0.3, "protect_first": 1, "protect_last": 1}, (8, 4), False),
    ],
)
def test_checkpoints_load(
    tiny: Path,
    calibration: Path,
    parts: dict[str, Path],
    tmp_path: Path,
    settings: dict[str, Any],
    config: tuple[int, int],
    alone: bool,
) -> None:
    out = tmp_path / "out"
    spec = {"sweep": "s", "method": "width", "settings": settings, "seed": 0}
    compress(out, "v", tiny, None, calibration, list(parts.values()), spec)
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    model = load(out, base=tiny)
    verify(model, out)
    stored = json.loads((out / "config.json").read_text())
    assert (stored["num_attention_heads"], stored["num_key_value_heads"]) == config
    assert stored["head_dim"] == 8
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert manifest["parameters"] == sum(t.numel() for t in dict(Weights(out, tiny).items()).values())
    before = weights(load(tiny))
    assert 1 - weights(model) / before == pytest.approx(settings["removed"], abs=96 * 5 / before)
    if alone:
        by_transformers = AutoModelForCausalLM.from_pretrained(whole(out, tiny), dtype=torch.float32).eval()
        verify(by_transformers, out)


def test_labels() -> None:
    settings = width.Settings(removed=0.2)
    assert settings.importance == "taylor1"
    assert settings.curve == "taylor1, first 4 blocks spared, last 2 spared"
    assert settings.label == f"20 % of the blocks' weights, {settings.curve}"
    assert settings.severity == 0.2
    assert settings.statistics == ("gradients",)
    uniform = width.Settings(removed=0.2, importance="magnitude", protect_first=0, protect_last=0)
    assert (uniform.curve, uniform.statistics) == ("magnitude, first 0 blocks spared, last 0 spared", ())
