"""Making, splitting and disturbing mixtures of experts, against the dense model and against loops."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hemorrhage.calibrate.expert_usage import mlp_inputs, usage, without_tokens
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_pruning import depth
from hemorrhage.compress.methods.moe import expert_split, routing, upcycling
from hemorrhage.compress.methods.unstructured_pruning import wanda
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import Experts, every_token, mixtures, routing_layers, unfuse
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests import tiny_moe
from tests.calibration import calibrated
from tests.layers import block_of, logits_of
from tests.whole import whole

FAMILIES = sorted(tiny_moe.OWN)
TOKENS = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.build(tmp_path_factory.mktemp("moe") / "mixtral", steps=8)


@pytest.fixture(scope="module")
def calibration(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(mixtral, tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def dense_calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("dense"))


def spec(method: str, **settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": method, "settings": settings, "seed": 0}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return logits_of(model, TOKENS)


def plain(folder: Path, base: Path | None = None, **arguments: Any) -> PreTrainedModel:
    """As transformers alone reads it."""
    folder = whole(folder, base) if base else folder
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments).eval()
    return model


def assert_close(left: Tensor, right: Tensor) -> None:
    assert (left - right).abs().max() <= 2e-5 * right.abs().max()


# The experts in memory


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_become_linear_layers_with_the_names_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    model = tiny_moe.new_model(family).eval()
    model.save_pretrained(tmp_path)
    before = logits(model)
    unfuse(model)
    unfuse(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    disk = load_file(tmp_path / "model.safetensors")
    memory = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert memory.keys() == disk.keys()
    assert all(torch.equal(memory[name], value) for name, value in disk.items())
    inside = [name for name in linears_of(model) if ".experts." in name]
    assert len(inside) == 2 * tiny_moe.EXPERTS * 3
    assert not any(name in linears_of(model) for name in routing_layers(model))
    assert_close(logits(load(tmp_path)), before)


def test_experts_of_an_unknown_family_are_refused() -> None:
    config = AutoConfig.for_model(
        "jetmoe", vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, kv_channels=8
    )
    with pytest.raises(ValueError, match=r"experts of a jetmoe .* can't be altered"):
        unfuse(AutoModelForCausalLM.from_config(config))


def test_a_dense_model_stays_as_it_is(tiny: Path) -> None:
    model = plain(tiny)
    names = list(model.state_dict())
    unfuse(model)
    assert list(model.state_dict()) == names
    assert mixtures(model) == {}


def test_with_every_token_all_experts_are_visited_and_the_result_is_the_same(mixtral: Path) -> None:
    model = load(mixtral)
    before, seen = logits(model), []
    for mixture in mixtures(model).values():
        for expert in mixture.experts:
            expert.w2.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    with every_token(model):
        assert_close(logits(model), before)
    assert seen == [TOKENS.numel()] * 2 * tiny_moe.EXPERTS
    seen.clear()
    logits(model)
    assert sum(seen) == 2 * 2 * TOKENS.numel()


def test_a_block_of_experts_can_be_copied(mixtral: Path) -> None:
    model = load(mixtral)
    before = logits(model)
    block = block_of(model, 1)
    twin = copy.deepcopy(block)
    assert twin.mlp is twin.block_sparse_moe
    assert twin.mlp is not block.mlp
    blocks(model)[1] = twin
    with torch.no_grad():
        block.mlp.gate.weight.zero_()
        assert torch.equal(logits(model), before)


def test_usage_is_that_of_a_forward_pass(mixtral: Path) -> None:
    model = load(mixtral)
    chosen: dict[str, list[Tensor]] = {name: [] for name in mixtures(model)}
    for name, mixture in mixtures(model).items():
        mixture.gate.register_forward_hook(lambda _, x, y, name=name: chosen[name].append(y[2]))
    logits(model)
    expected = {name: torch.cat(each).flatten().bincount(minlength=4).tolist() for name, each in chosen.items()}
    found = usage(load(mixtral), TOKENS)
    assert {name: one["tokens"] for name, one in found.items()} == expected
    for one in found.values():
        share = torch.tensor(one["tokens"]) / sum(one["tokens"])
        entropy = -(share * share.clamp_min(1e-9).log()).sum() / torch.tensor(4.0).log()
        assert one["load_entropy"] == pytest.approx(entropy.item(), abs=1e-5)
        assert 0 < one["routing_entropy"] <= 1.3863
    assert without_tokens(found) == []


def test_usage_of_a_bfloat16_model_leaves_it_as_it_was(mixtral: Path) -> None:
    model = load(mixtral, "bfloat16")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    usage(model, TOKENS)
    after = model.state_dict()
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, before[name]) for name, value in after.items())


def test_experts_without_tokens_are_named(mixtral: Path) -> None:
    model = load(mixtral)
    mixture = mixtures(model)["model.layers.1.block_sparse_moe"]
    tokens = TOKENS[:1, :12]
    (inputs,) = [x for _, module, x in mlp_inputs(model, tokens) if module is mixture]
    with torch.no_grad():
        # Below the others for every token.
        lowest = (inputs @ mixture.gate.weight.T).amin(1) - 1
        mixture.gate.weight[2] = torch.linalg.lstsq(inputs, lowest).solution
    found = usage(model, tokens)
    assert found["model.layers.1.block_sparse_moe"]["tokens"][2] == 0
    assert "model.layers.1.block_sparse_moe.experts.2" in without_tokens(found)
    assert len(without_tokens(found)) == sum(one["tokens"].count(0) for one in found.values())


# Methods that go through the linear layers


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_rtn_quantizes_the_experts_and_transformers_reads_them(family: str, mixtral: Path, tmp_path: Path) -> None:
    base = mixtral if family == "mixtral" else tiny_moe.build(tmp_path / "base", family, steps=0)
    compress(tmp_path / "v", "v", base, None, None, [], spec("rtn", bits=4, group_size=16, symmetric=True))
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    tensors = dict(Weights(tmp_path / "v", base).items())
    packed = [name for name in tensors if name.endswith("weight_packed")]
    assert sum(".experts." in name for name in packed) == 2 * tiny_moe.EXPERTS * 3
    assert not any("gate.weight_packed" in name for name in packed)
    stored = sum(8 * value.numel() * value.element_size() for value in tensors.values())
    assert manifest["parameters"] == sum(value.numel() for value in load(base).parameters())
    assert manifest["effective_bits"] == pytest.approx(stored / manifest["parameters"])
    # 4 bits, a float32 scale for every 16, and the shape of each matrix.
    assert 6 <= manifest["layer_bits"] < 6.2
    model = load(tmp_path / "v", base=base)
    verify(model, tmp_path / "v")
    assert_close(logits(plain(tmp_path / "v", base)), logits(model))


def test_transformers_alone_reads_no_asymmetric_experts(mixtral: Path, tmp_path: Path) -> None:
    # transformers 5.17 unpacks experts from codes, scales and shapes alone. Ours reads them.
    compress(tmp_path / "v", "v", mixtral, None, None, [], spec("rtn", bits=4, group_size=16))
    verify(load(tmp_path / "v", base=mixtral), tmp_path / "v")
    with pytest.raises(RuntimeError, match="conversion of the weights"):
        plain(tmp_path / "v", mixtral)


def test_calibrated_methods_reach_every_expert(mixtral: Path, calibration: Path, tmp_path: Path) -> None:
    compress(tmp_path / "g", "g", mixtral, None, calibration, [], spec("gptq", bits=4, group_size=16))
    assert "failure" not in read_manifest(tmp_path / "g")
    verify(load(tmp_path / "g", base=mixtral), tmp_path / "g")
    compress(tmp_path / "w", "w", mixtral, None, calibration, [], spec("wanda", sparsity=0.5))
    assert "failure" not in read_manifest(tmp_path / "w")
    for name, linear in linears_of(load(tmp_path / "w", base=mixtral)).items():
        assert ((linear.weight == 0).sum(1) == linear.in_features // 2).all(), name
    assert_close(logits(plain(tmp_path / "w", mixtral)), logits(load(tmp_path / "w", base=mixtral)))
    shared = Statistics(calibration).shared()
    assert shared["model.layers.0.block_sparse_moe.experts.0.w1"] == [
        f"model.layers.0.block_sparse_moe.experts.{expert}.{name}"
        for expert in range(tiny_moe.EXPERTS)
        for name in ("w1", "w3")
    ]
    assert gptq.Settings(bits=4).statistics == ("hessian",)
    assert wanda.Settings(sparsity=0.5).statistics == ("activations",)
    assert rtn.Settings(bits=4).statistics == ()


def test_blocks_of_experts_can_be_taken_out(mixtral: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", mixtral, None, None, [], spec("depth", removed=0.5, order="random"))
    assert "failure" not in read_manifest(tmp_path / "v")
    assert len(blocks(plain(tmp_path / "v", mixtral))) == 1
    assert depth.Settings(removed=0.5, order="random").axis == "removed"


# Upcycling


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (8, 1), (3, 3)])
def test_an_upcycled_model_is_the_dense_one(tiny: Path, experts: int, top_k: int) -> None:
    model = load(tiny)
    before = logits(model)
    parameters = sum(value.numel() for value in model.parameters())
    settings = upcycling.Settings(experts=experts, top_k=top_k)
    upcycling.alter(model, settings, Context())
    assert type(model).__name__ == "MixtralForCausalLM"
    assert_close(logits(model), before)
    routers = torch.stack([mixture.gate.weight for mixture in mixtures(model).values()])
    assert routers.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(routers[0], routers[1])
    added = sum(value.numel() for value in model.parameters()) - parameters
    assert added == 5 * ((experts - 1) * 3 * 64 * 172 + experts * 64)
    assert upcycling.share_added(model) == pytest.approx(added / parameters)


def test_an_upcycled_checkpoint_is_an_ordinary_mixtral(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", tiny, None, None, [], spec("upcycling", experts=4, top_k=2))
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    assert manifest["severity"] > 1
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    assert "num_experts" not in config
    model = plain(tmp_path / "v", tiny)
    assert type(model).__name__ == "MixtralForCausalLM"
    assert_close(logits(model), logits(load(tiny)))
    tensors = dict(Weights(tmp_path / "v", tiny).items())
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in tensors
    assert "lm_head.weight" not in tensors


def test_without_normalisation_the_output_shrinks_by_what_was_not_chosen(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    dense = {index: copy.deepcopy(mlp) for index, mlp, _ in mlp_inputs(model, TOKENS)}
    upcycling.alter(model, upcycling.Settings(experts=4, top_k=2, normalize=False), Context())
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    for index, mixture, x in mlp_inputs(model, TOKENS):
        probability = (x @ mixture.gate.weight.T).softmax(-1).topk(2).values.sum(-1)
        assert probability.max() < 1
        with torch.no_grad():
            assert_close(mixture(x[None])[0], probability[:, None] * dense[index](x))
    compress(tmp_path / "v", "v", tiny, None, None, [], spec("upcycling", normalize=False))
    assert "failure" not in read_manifest(tmp_path / "v")
    assert_close(logits(plain(tmp_path / "v", tiny)), logits(model))
    # Packed on top of that: the gate of the shared expert that is not there stays as it is.
    quantized = spec("rtn", bits=4, group_size=4, symmetric=True) | {"on": "v"}
    compress(tmp_path / "q", "q", tiny, tmp_path / "v", None, [], quantized)
    assert "failure" not in read_manifest(tmp_path / "q")
    assert_close(logits(plain(tmp_path / "q", tiny)), logits(load(tmp_path / "q", base=tiny)))


def test_noise_makes_the_experts_differ(tiny: Path) -> None:
    model = load(tiny)
    before, weight = logits(model), model.model.layers[0].mlp.up_proj.weight.detach().clone()
    upcycling.alter(model, upcycling.Settings(experts=4, noise=0.1), Context())
    copies = [expert.w3.weight - weight for expert in mixtures(model)["model.layers.0.block_sparse_moe"].experts]
    for change in copies:
        assert (change.std() / weight.square().mean().sqrt()).item() == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(copies[0], copies[1])
    assert (logits(model) - before).abs().max() > 1e-3


# Splitting


@pytest.mark.parametrize("scale", ["sum", "expected"])
@pytest.mark.parametrize("experts", [2, 4])
def test_a_split_with_all_experts_is_the_dense_model(tiny: Path, experts: int, scale: Any) -> None:
    model = load(tiny)
    before = logits(model)
    parameters = sum(value.numel() for value in model.parameters())
    settings = expert_split.Settings(experts=experts, top_k=experts, scale=scale)
    assert (settings.severity, settings.statistics) == (0, ())
    expert_split.alter(model, settings, Context())
    assert_close(logits(model), before)
    assert sum(value.numel() for value in model.parameters()) == parameters + 5 * experts * 64


@pytest.mark.parametrize("scale", ["sum", "expected"])
@pytest.mark.parametrize("router", ["random", "regression"])
def test_a_split_computes_with_the_chosen_channels(
    tiny: Path, dense_calibration: Path, router: Any, scale: Any
) -> None:
    dense = load(tiny)
    model = load(tiny)
    settings = expert_split.Settings(experts=4, top_k=1 if router == "random" else 3, router=router, scale=scale)
    expert_split.alter(model, settings, Context(Statistics(dense_calibration)))
    factor = 1 if scale == "sum" else 4 / settings.top_k
    for index, mixture, x in mlp_inputs(model, TOKENS):
        mlp = block_of(dense, index).mlp
        # Each channel of the dense MLP lies in one expert.
        rows = torch.cat([expert.w1.weight for expert in mixture.experts])
        place = torch.cdist(rows, mlp.gate_proj.weight).argmin(1).view(4, -1)
        assert place.flatten().sort().values.equal(torch.arange(172))
        assert torch.equal(rows, mlp.gate_proj.weight[place.flatten()])
        inner = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        logit = x @ mixture.gate.weight.T
        assert 1e-4 < logit.square().mean().sqrt() < 1e-2
        best = logit.topk(settings.top_k).indices
        mask = torch.zeros_like(inner)
        for chosen in best.T:
            mask.scatter_(1, place[chosen], 1.0)
        assert torch.equal(mask.sum(1), torch.full((len(x),), 43.0 * settings.top_k))
        expected = factor * (inner * mask) @ mlp.down_proj.weight.T
        with torch.no_grad():
            found = mixture(x[None])[0]
        assert (found - expected).norm() < 5e-3 * expected.norm()


def test_the_router_is_ridge_regression(tiny: Path) -> None:
    model = load(tiny)
    _, mlp, x = next(iter(mlp_inputs(model, TOKENS)))
    channels = torch.randperm(172, generator=torch.Generator().manual_seed(1)).view(4, -1)
    router = expert_split.fit(mlp, x, channels).double()
    inner = (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)).detach()
    norms = torch.zeros(len(x), 4)
    for expert in range(4):
        for token in range(len(x)):
            total = torch.zeros(64)
            for channel in channels[expert].tolist():
                total += inner[token, channel] * mlp.down_proj.weight.detach()[:, channel]
            norms[token, expert] = total.norm()
    target = (norms / norms.sum(1, keepdim=True) - 0.25).double()
    penalty = (0.01 * x.square().sum(0).mean()).sqrt().double() * torch.eye(64)
    system = torch.cat([x.double(), penalty])
    expected = torch.linalg.lstsq(system, torch.cat([target, torch.zeros(64, 4)])).solution.T
    scale = 1e-3 / (x.double() @ expected.T).square().mean().sqrt()
    assert (router - scale * expected).norm() < 1e-3 * router.norm()


def test_a_fitted_router_loses_less_than_a_random_one(tiny: Path, dense_calibration: Path) -> None:
    before = logits(load(tiny)).log_softmax(-1)
    divergence = {}
    for router in ("random", "regression"):
        model = load(tiny)
        settings = expert_split.Settings(experts=4, top_k=2, router=router)
        expert_split.alter(model, settings, Context(Statistics(dense_calibration)))
        after = logits(model).log_softmax(-1)
        divergence[router] = (before.exp() * (before - after)).sum(-1).mean().item()
    assert 0 < divergence["regression"] < divergence["random"]


def test_a_split_checkpoint_reads_back(tiny: Path, dense_calibration: Path, tmp_path: Path) -> None:
    settings = spec("expert_split", experts=4, top_k=3)
    compress(tmp_path / "v", "v", tiny, None, dense_calibration, [], settings)
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    assert (manifest["axis"], manifest["severity"]) == ("routing", 0.25)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_local_experts"], config["num_experts_per_tok"]) == (43, 4, 3)
    # transformers' grouped product of experts wants rows of whole 16 bytes, which 43 floats are not.
    theirs = plain(tmp_path / "v", tiny, experts_implementation="eager")
    assert_close(logits(theirs), logits(load(tmp_path / "v", base=tiny)))


# Routing


def altered(folder: Path, calibration: Path | None = None, seed: int = 0, **settings: Any) -> PreTrainedModel:
    model = load(folder)
    statistics = None if calibration is None else Statistics(calibration)
    routing.alter(model, routing.Settings(**settings), Context(statistics, seed))
    return model


def test_noise_is_relative_to_the_router(mixtral: Path) -> None:
    before = {name: mixture.gate.weight for name, mixture in mixtures(load(mixtral)).items()}
    model = altered(mixtral, alteration="noise", amount=0.5)
    for name, mixture in mixtures(model).items():
        change = mixture.gate.weight - before[name]
        assert (change.std() / before[name].square().mean().sqrt()).item() == pytest.approx(0.5, rel=0.15)
    again, other = (altered(mixtral, seed=seed, alteration="noise", amount=0.5) for seed in (0, 1))
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("number", [1, 4])
def test_top_k_is_that_of_the_configuration(mixtral: Path, tmp_path: Path, number: int) -> None:
    config = AutoConfig.from_pretrained(mixtral)
    config.num_experts_per_tok = number
    theirs = AutoModelForCausalLM.from_pretrained(mixtral, config=config).eval()
    assert_close(logits(altered(mixtral, alteration="top_k", amount=number)), logits(theirs))


def test_a_new_top_k_is_a_change(mixtral: Path, tmp_path: Path) -> None:
    compress(tmp_path / "v", "v", mixtral, None, None, [], spec("routing", alteration="top_k", amount=1))
    assert "failure" not in read_manifest(tmp_path / "v")
    assert json.loads((tmp_path / "v" / "config.json").read_text())["num_experts_per_tok"] == 1
    assert read_manifest(tmp_path / "v")["severity"] == 1


def test_a_quantized_router_has_that_many_levels(mixtral: Path) -> None:
    before = {name: mixture.gate.weight for name, mixture in mixtures(load(mixtral)).items()}
    model = altered(mixtral, alteration="quantize", amount=3)
    for name, mixture in mixtures(model).items():
        for row, old in zip(mixture.gate.weight, before[name], strict=True):
            assert len(row.unique()) <= 8
            step = (old.max().clamp_min(0) - old.min().clamp_max(0)) / 7
            assert (row - old).abs().max() <= step
    linears = {name: linear.weight for name, linear in linears_of(load(mixtral)).items()}
    assert all(torch.equal(linear.weight, linears[name]) for name, linear in linears_of(model).items())


def masked(mixture: Any, x: Tensor, kept: tuple[int, ...]) -> Tensor:
    """What a mixture gives when only the experts ``kept`` can be chosen: token by token."""
    result = []
    for token in x:
        scores = {expert: (mixture.gate.weight[expert] @ token).item() for expert in range(len(mixture.experts))}
        probability = dict(
            zip(kept, torch.tensor([scores[expert] for expert in kept]).softmax(0).tolist(), strict=True)
        )
        best = sorted(kept, key=lambda expert: -scores[expert])[: mixture.gate.top_k]
        normal = sum(probability[expert] for expert in best) if getattr(mixture.gate, "norm_topk_prob", True) else 1.0
        result.append(sum(probability[expert] / normal * mixture.experts[expert](token[None])[0] for expert in best))
    return torch.stack(result)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_reconstruction_is_its_definition(family: str, mixtral: Path, tmp_path: Path) -> None:
    model = load(mixtral if family == "mixtral" else tiny_moe.build(tmp_path, family, steps=0))
    for _, mixture, x in mlp_inputs(model, TOKENS[:1, :12]):
        losses = routing.reconstruction(mixture, x, 2)
        assert list(losses) == list(itertools.combinations(range(4), 2))
        with torch.no_grad():
            whole = masked(mixture, x, (0, 1, 2, 3))
            torch.testing.assert_close(mixture(x[None])[0], whole, rtol=1e-4, atol=1e-5)
            for kept, found in losses.items():
                expected = (whole - masked(mixture, x, kept)).square().sum().item()
                assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("family", "choose"),
    [
        ("mixtral", "random"),
        ("mixtral", "usage"),
        ("mixtral", "reconstruction"),
        ("olmoe", "usage"),
        ("qwen2_moe", "reconstruction"),
        ("qwen3_moe", "random"),
    ],
)
def test_dropped_experts_are_gone_from_the_checkpoint(
    family: str, choose: Any, mixtral: Path, calibration: Path, tmp_path: Path
) -> None:
    base = mixtral if family == "mixtral" else tiny_moe.build(tmp_path / "base", family, steps=0)
    dropped = spec("routing", alteration="drop", amount=0.25, choose=choose)
    compress(tmp_path / "v", "v", base, None, calibration, [], dropped)
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    settings = routing.Settings(alteration="drop", amount=0.25, choose=choose)
    original, model = load(base), load(tmp_path / "v", base=base)
    tokens = Statistics(calibration)
    kept = routing.choose(original, settings, tokens, 0)
    if choose == "usage":
        for name, one in usage(original, tokens.tokens()).items():
            assert min(one["tokens"]) in [one["tokens"][e] for e in range(4) if e not in kept[name]]
    if choose == "reconstruction":
        (first, *_) = kept
        _, mixture, x = next(iter(mlp_inputs(original, tokens.tokens())))
        with torch.no_grad():
            whole = mixture(x[None])[0]
            losses = {}
            for gone in range(4):
                less = copy.deepcopy(mixture)
                less.gate.weight = nn.Parameter(less.gate.weight[[e for e in range(4) if e != gone]])
                less.experts = Experts([expert for e, expert in enumerate(less.experts) if e != gone])
                losses[gone] = (whole - less(x[None])[0]).norm().item()
        assert min(losses, key=lambda gone: losses[gone]) not in kept[first]
    for name, mixture in mixtures(model).items():
        assert len(mixture.experts) == 3
        old = mixtures(original)[name]
        assert torch.equal(mixture.gate.weight, old.gate.weight[kept[name]])
        for expert, index in zip(mixture.experts, kept[name], strict=True):
            pairs = zip(expert.parameters(), old.experts[index].parameters(), strict=True)
            assert all(torch.equal(left, right) for left, right in pairs)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert [config[key] for key in ("num_experts", "num_local_experts") if key in config] == [3]
    assert_close(logits(plain(tmp_path / "v", base)), logits(model))


def test_a_made_mixture_is_disturbed_through_its_parent(tiny: Path, dense_calibration: Path, tmp_path: Path) -> None:
    compress(tmp_path / "p", "p", tiny, None, None, [], spec("upcycling", experts=4, noise=0.05))
    for index, settings in enumerate(
        (
            {"alteration": "noise", "amount": 1.0},
            {"alteration": "drop", "amount": 0.5, "choose": "usage"},
        )
    ):
        out = tmp_path / str(index)
        compress(out, "v", tiny, tmp_path / "p", dense_calibration, [], spec("routing", **settings) | {"on": "p"})
        assert "failure" not in read_manifest(out)
        verify(load(out, base=tiny), out)
        assert (logits(plain(out, tiny)) - logits(load(tmp_path / "p", base=tiny))).abs().max() > 1e-4


# Settings


@pytest.mark.parametrize(
    ("method", "wrong", "why"),
    [
        (upcycling, {"experts": 1}, "greater than or equal to 2"),
        (upcycling, {"experts": 4, "top_k": 5}, "at most 4 can be chosen"),
        (upcycling, {"noise": -1}, "greater than or equal to 0"),
        (expert_split, {"experts": 4, "top_k": 5}, "at most 4 can be chosen"),
        (expert_split, {"top_k": 1, "partition": "magnitude"}, "Extra inputs"),
        (routing, {"alteration": "noise", "amount": 0}, "above 0"),
        (routing, {"alteration": "noise", "amount": True}, "a number"),
        (routing, {"alteration": "top_k", "amount": 1.5}, "1 or more"),
        (routing, {"alteration": "drop", "amount": 1.0, "choose": "usage"}, "between 0 and 1"),
        (routing, {"alteration": "drop", "amount": 0.5}, "choose: random, usage or reconstruction"),
        (routing, {"alteration": "noise", "amount": 0.5, "choose": "usage"}, "for no other"),
        (routing, {"alteration": "quantize", "amount": 9}, "from 2 to 8"),
    ],
)
def test_wrong_settings_are_refused(method: Any, wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        method.Settings.model_validate(wrong)


def test_what_a_model_can_not_become(tiny: Path, mixtral: Path) -> None:
    dense, moe = (json.loads((folder / "config.json").read_text()) for folder in (tiny, mixtral))
    assert upcycling.Settings().check(dense) is None
    assert "mlp_bias: a mixture" in str(upcycling.Settings().check({**dense, "mlp_bias": True}))
    assert (
        upcycling.Settings().check(moe) == "model_type mixtral can't become a mixture of experts; llama and mistral can"
    )
    assert "sliding_window" in str(upcycling.Settings(normalize=False).check({**dense, "sliding_window": 64}))
    assert upcycling.Settings().check({**dense, "sliding_window": 64}) is None
    assert expert_split.Settings(experts=8, top_k=2).check(dense) == (
        "experts 8 does not divide the model's intermediate_size of 172"
    )
    assert expert_split.Settings(experts=4, top_k=2).check(dense) is None
    with pytest.raises(ValueError, match="does not divide"):
        expert_split.alter(load(tiny), expert_split.Settings(experts=8, top_k=2), Context())
    biased = load(tiny)
    biased.model.layers[1].mlp.up_proj.bias = nn.Parameter(torch.zeros(172))
    with pytest.raises(ValueError, match="layer 1: a mixture is made of MLPs with gate_proj"):
        upcycling.alter(biased, upcycling.Settings(), Context())


def test_what_routing_can_not_do(tiny: Path, mixtral: Path) -> None:
    dense, moe = (json.loads((folder / "config.json").read_text()) for folder in (tiny, mixtral))

    def check(config: dict[str, Any], **settings: Any) -> str:
        return str(routing.Settings(**settings).check(config))

    assert "needs a model with experts" in check(dense, alteration="noise", amount=1.0)
    with pytest.raises(ValueError, match="needs a model with experts"):
        altered(tiny, alteration="noise", amount=1.0)
    assert "from 1 to the model's 4 experts" in check(moe, alteration="top_k", amount=5)
    assert "not the 2" in check(moe, alteration="top_k", amount=2)
    assert "takes out 3" in check(moe, alteration="drop", amount=0.75, choose="random")
    assert "takes out 0" in check(moe, alteration="drop", amount=0.1, choose="random")
    assert check(moe, alteration="drop", amount=0.5, choose="reconstruction") == "None"
    many = {"num_experts": 60, "num_experts_per_tok": 4}
    assert "choose usage" in check(many, alteration="drop", amount=0.25, choose="reconstruction")


def test_settings_for_people_and_plan() -> None:
    shrunk = upcycling.Settings(experts=8, normalize=False, noise=0.1)
    assert shrunk.label == "8 experts, top 2, not normalised, noise 0.1"
    assert upcycling.Settings().curve == "top 2"
    half = expert_split.Settings(experts=8, top_k=4, router="random", scale="expected")
    assert (half.label, half.curve) == (
        "4 of 8 experts, random router, rescaled",
        "8 experts, random router, rescaled",
    )
    assert (half.severity, half.statistics) == (0.5, ())
    assert expert_split.Settings(top_k=4).statistics == ("tokens",)
    cases: dict[Any, Any] = {
        ("noise", 0.5, None): (0.5, "router noise 0.5", "noise", ()),
        ("top_k", 4, None): (0.25, "top 4", "top_k", ()),
        ("quantize", 2, None): (0.25, "router of 2 bit", "quantize", ()),
        ("drop", 0.5, "random"): (0.5, "50 % of experts dropped, random", "drop, random", ()),
        ("drop", 0.25, "usage"): (0.25, "25 % of experts dropped, usage", "drop, usage", ("tokens",)),
    }
    for (alteration, amount, choose), expected in cases.items():
        settings = routing.Settings(alteration=alteration, amount=amount, choose=choose)
        assert (settings.severity, settings.label, settings.curve, settings.statistics) == expected
