"""Tests of routing."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hemorrhage.calibrate.expert_usage import mlp_inputs, usage
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.moe import routing
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import Experts, mixtures, routing_layer
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.reload import verify
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests import tiny_moe
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.compress.mixtures import TOKENS, assert_close, logits, plain
from tests.families import build


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.build(tmp_path_factory.mktemp("moe") / "mixtral", steps=8)


@pytest.fixture(scope="module")
def calibration(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(mixtral, tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def dense_calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("dense"))


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


FAMILIES = ["phimoe", "granitemoe", "gpt_oss", "llama4_text", "deepseek_v3", "hunyuan_v1_moe", "ernie4_5_moe", "jamba"]


def made_of(family: str, root: Path, **settings: Any) -> tuple[Path, Path]:
    """A family's base and a variant of it."""
    prepare({"source": "path", "path": str(build(root / "original", family))}, root / "base")
    compress(root / "v", "v", root / "base", None, None, [], spec("routing", **settings))
    return root / "base", root / "v"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {"alteration": "noise", "amount": 0.2},
        {"alteration": "top_k", "amount": 3},
        {"alteration": "drop", "amount": 0.25, "choose": "random"},
    ],
    ids=lambda settings: settings["alteration"],
)
def test_transformers_computes_what_was_made_of_a_familys_routing(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    refused = (family, settings["alteration"]) in {("phimoe", "top_k"), ("deepseek_v3", "drop")}
    base, variant = made_of(family, tmp_path, **settings)
    if refused:
        assert read_manifest(variant)["failure"].startswith("RefusedError: ")
        return
    assert "failure" not in read_manifest(variant), read_manifest(variant)["failure"]
    export(variant, tmp_path / "dense", "dense", base)
    ours, theirs = logits(load(variant, base=base)), logits(plain(tmp_path / "dense"))
    assert_close(theirs, ours)
    assert (ours - logits(load(base))).abs().max() > 1e-3 * ours.abs().max()


@pytest.mark.parametrize("family", ["gpt_oss", "hunyuan_v1_moe", "jamba"])
def test_a_dropped_expert_is_one_that_no_token_can_take(family: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"alteration": "drop", "amount": 0.25, "choose": "random"}
    base, variant = made_of(family, tmp_path, **settings)
    original = load(base)
    kept = routing.choose(original, routing.Settings(**settings), None, 0)
    masked_model = plain(tmp_path / "original")
    for name, stays in kept.items():
        gone = [expert for expert in range(4) if expert not in stays]
        layer = routing_layer(masked_model.get_submodule(name))
        if family == "gpt_oss":
            layer.bias.data[gone] = -1e4
        else:
            layer.register_forward_hook(lambda _, __, out, gone=gone: out.index_fill(1, torch.tensor(gone), -1e4))
    assert_close(logits(load(variant, base=base)), logits(masked_model))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("phimoe", {"alteration": "top_k", "amount": 1}, "no number that can be set in a PhimoeSparseMoeBlock"),
        ("deepseek_v3", {"alteration": "drop", "amount": 0.25, "choose": "random"}, "are in 2 groups of one size"),
        (
            "jamba",
            {"alteration": "drop", "amount": 0.25, "choose": "reconstruction"},
            "take the largest of a softmax over all experts; a JambaSparseMoeBlock's is another",
        ),
    ],
)
def test_what_a_familys_router_does_not_go_with_is_refused(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = load(build(tmp_path, family))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RefusedError, match=reason):
        routing.Settings(**settings).check_model(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["granitemoe", "gpt_oss", "hunyuan_v1_moe", "qwen2_moe"])
def test_reconstruction_knows_routers_that_take_the_largest_of_a_softmax(family: str, tmp_path: Path) -> None:
    model = load(build(tmp_path, family))
    assert routing.Settings(alteration="drop", amount=0.25, choose="reconstruction").check_model(model) is None
