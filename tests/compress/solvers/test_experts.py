"""Making, splitting and disturbing mixtures of experts, against the dense model and against loops."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

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
from hemorrhage.models.experts import every_token, mixtures, routing_layers, unfuse
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests import tiny_moe
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.compress.mixtures import TOKENS, assert_close, logits, plain
from tests.layers import block_of

FAMILIES = sorted(tiny_moe.OWN)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.build(tmp_path_factory.mktemp("moe") / "mixtral", steps=8)


@pytest.fixture(scope="module")
def calibration(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(mixtral, tmp_path_factory.mktemp("calibration"))


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
