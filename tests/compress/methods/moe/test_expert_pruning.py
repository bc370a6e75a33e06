"""Tests of expert_pruning."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.calibrate.expert_usage import mlp_inputs, usage
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.moe import expert_pruning
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import PROJECTIONS, mixtures, new_expert, router
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests import tiny_moe
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.compress.mixtures import assert_close, logits, plain
from tests.families import build

DEEPSEEK = {"n_routed_experts": 12, "n_group": 2, "topk_group": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "olmoe": {},
    "granitemoe": {},
    "granitemoehybrid": {},
    "phimoe": {},
    "llama4_text": {},
    "gpt_oss": {},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "glm4_moe": {},
    "ernie4_5_moe": {},
    "hunyuan_v1_moe": {"moe_topk": [2, 1, 2, 2]},
    "dots1": {},
    "jamba": {},
    "qwen3_next": {},
}
"""Family -> changes of its small model's configuration."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A family's folder as its user has it, its base, and a calibration."""
    root = tmp_path_factory.mktemp(request.param)
    build(root / "original", request.param, **FAMILIES[request.param])
    prepare({"source": "path", "path": str(root / "original")}, root / "base")
    return root / "original", root / "base", calibrated(root / "base", root)


def added(mixture: Any, x: Tensor) -> list[Tensor]:
    """For each expert what the mixture gives with it and not without it: [experts][tokens, hidden]."""
    with torch.no_grad():
        whole = _output(mixture, x)
        each = []
        for expert in mixture.experts:
            down = expert.projections()[2]
            kept = [value.data for value in down.parameters()]
            for value in down.parameters():
                value.data = torch.zeros_like(value)
            each.append(whole - _output(mixture, x))
            for value, data in zip(down.parameters(), kept, strict=True):
                value.data = data
    return each


def _output(mixture: Any, x: Tensor) -> Tensor:
    output = mixture(x[None])
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states.reshape(-1, states.shape[-1])


def saliencies(model: PreTrainedModel, calibration: Path) -> dict[str, list[float]]:
    """REAP's saliency as the paper defines it, of what each expert was found to add, a token at a time."""
    names = {mixture: name for name, mixture in mixtures(model).items()}
    found = {}
    for _, mixture, x in mlp_inputs(model, Statistics(calibration).tokens()):
        if mixture in names:
            of_mixture = []
            for output in added(mixture, x):
                norms = [token.norm().item() for token in output if token.abs().max() > 0]
                of_mixture.append(sum(norms) / max(len(norms), 1))
            found[names[mixture]] = of_mixture
    return found


def test_saliency_is_the_papers_in_every_family(family: tuple[Path, Path, Path]) -> None:
    _, base, calibration = family
    model = load(base)
    expected, frequency = saliencies(model, calibration), usage(model, Statistics(calibration).tokens())
    names = {mixture: name for name, mixture in mixtures(model).items()}
    for _, mixture, x in mlp_inputs(model, Statistics(calibration).tokens()):
        if mixture in names:
            with torch.no_grad():
                saliency, tokens = expert_pruning.measure(mixture, x)
            assert saliency.tolist() == pytest.approx(expected[names[mixture]], rel=1e-3)
            assert tokens.tolist() == frequency[names[mixture]]["tokens"]


def made(out: Path, base: Path, calibration: Path | None, **settings: Any) -> dict[str, Any]:
    compress(out, "v", base, None, calibration, [], spec("expert_pruning", **settings))
    return dict(read_manifest(out))


def test_a_family_loads_with_fewer_experts_in_transformers(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, base, calibration = family
    before = load(base, "stored")
    of_config = before.config.get_text_config(decoder=True)
    groups = getattr(of_config, "n_group", None) or 1
    removed = 0.5 if groups > 1 else 0.25
    manifest = made(tmp_path / "v", base, calibration, removed=removed)
    assert "failure" not in manifest, manifest["failure"]
    number = len(next(iter(mixtures(before).values())).experts)
    left = number - round(removed * number)
    expected = saliencies(load(base), calibration)
    model = load(tmp_path / "v", "stored", base=base)
    for name, mixture in mixtures(model).items():
        kept = manifest["experts"][name]
        size = number // groups
        for first in range(0, number, size):
            ranked = sorted(range(first, first + size), key=lambda index: expected[name][index])
            assert set(kept) & set(ranked) == set(ranked[-left // groups :])
        old = mixtures(before)[name]
        for ours, theirs in zip(router(mixture).parameters(), router(old).parameters(), strict=True):
            dim = 0 if len(theirs) == number else 1
            assert torch.equal(ours, theirs.index_select(dim, torch.tensor(kept)))
        for expert, index in zip(mixture.experts, kept, strict=True):
            pairs = zip(expert.parameters(), old.experts[index].parameters(), strict=True)
            assert all(torch.equal(left, right) for left, right in pairs)
    linears = json.loads((tmp_path / "v" / "layers.json").read_text())
    assert {layer["weight_sqnr"] for layer in linears.values()} == {150.0}
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["model_type"] == json.loads((original / "config.json").read_text())["model_type"]
    export(tmp_path / "v", tmp_path / "dense", "dense", base)
    theirs = plain(tmp_path / "dense")
    assert_close(logits(theirs), logits(load(tmp_path / "v", base=base)))
    # The weights that went, over all of the blocks' linear layers.
    share = 1 - sum(v.numel() for v in theirs.parameters()) / sum(v.numel() for v in before.parameters())
    assert 0 < share < manifest["severity"] < removed


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_the_experts_that_go_are_llmcompressors(kind: str, tmp_path: Path) -> None:
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.pruning.reap.base import REAPPruningModifier

    base = tiny_moe.build(tmp_path / "base", kind, steps=8, experts=8)
    calibration = calibrated(base, tmp_path)
    rows = Statistics(calibration).tokens().tolist()
    # Its sequential pipeline loses the causal mask of these families.
    theirs = plain(base)
    oneshot(
        model=theirs,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=REAPPruningModifier(sparsity=0.5, report_path=str(tmp_path / "kept.json")),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
        moe_calibrate_all_experts=False,
        pipeline="basic",
    )
    ours = made(tmp_path / "v", base, calibration, removed=0.5)
    kept = json.loads((tmp_path / "kept.json").read_text())
    by_block = [experts for _, experts in sorted(kept.items())]
    assert by_block == [experts for _, experts in sorted(ours["experts"].items())]
    assert len(by_block) == 2
    assert_close(logits(load(tmp_path / "v", base=base)), logits(theirs))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained Mixtral of 8 experts, and a calibration."""
    root = tmp_path_factory.mktemp("mixtral")
    base = tiny_moe.build(root / "base", "mixtral", steps=8, experts=8)
    return base, calibrated(base, root)


@pytest.mark.parametrize("importance", ["reap", "frequency", "random"])
@pytest.mark.parametrize("merge", [False, True])
def test_which_experts_stay(importance: Any, merge: bool, mixtral: tuple[Path, Path]) -> None:
    base, calibration = mixtral
    model, statistics = load(base), Statistics(calibration)
    scores = saliencies(model, calibration)
    if importance == "frequency":
        scores = {name: [*map(float, each["tokens"])] for name, each in usage(model, statistics.tokens()).items()}
    settings = expert_pruning.Settings(removed=0.5, importance=importance, merge=merge)
    chosen = expert_pruning.choose(model, settings, statistics, 0)
    assert chosen == expert_pruning.choose(model, settings, statistics, 0)
    for name, groups in chosen.items():
        assert list(groups) == sorted(groups)
        assert len(groups) == 4
        if importance != "random":
            assert set(groups) == set(sorted(range(8), key=lambda index: scores[name][index])[4:])
        members = [index for group in groups.values() for index in group]
        assert sorted(members) == (list(range(8)) if merge else list(groups))
    other = expert_pruning.choose(model, settings, statistics, 1)
    assert (other == chosen) == (importance != "random")


def test_an_expert_joins_the_one_with_the_most_similar_logits_by_frequency() -> None:
    # Experts 0 and 2 follow 1 and 3, and expert 4, which no token takes, follows 3.
    logits_of_experts = torch.tensor(
        [[1.0, 2.0, -1.0, -1.0, -3.0], [3.0, 5.9, 0.5, 1.0, 1.4], [0.0, 0.3, 2.0, 4.0, 9.0]]
    )
    joined = expert_pruning.join(logits_of_experts, torch.tensor([1, 3, 5, 5, 0]), [1, 3], 1)
    assert joined == {1: {1: 0.75, 0: 0.25}, 3: {3: 0.5, 2: 0.5}}
    assert expert_pruning.join(torch.eye(4), torch.tensor([0, 0, 2, 2]), [0, 2], 2) == {
        0: {0: 1.0},
        2: {2: 0.5, 3: 0.5},
    }


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral"])
def test_copies_in_another_order_are_merged_into_the_same_function(name: str, tmp_path: Path) -> None:
    mixture = next(iter(mixtures(load(build(tmp_path, name))).values()))
    stays, other = mixture.experts[1], mixture.experts[2]
    order = torch.randperm(stays.projections()[0].out_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value, data in zip(other.parameters(), expert_pruning.permuted(stays, order), strict=True):
            value.data = data
        x = torch.randn(5, stays.projections()[0].in_features)
        before = stays(x)
        torch.testing.assert_close(other(x), before)
        assert not torch.equal(other.projections()[0].weight, stays.projections()[0].weight)
        expert_pruning.merge(mixture.experts, 1, {1: 0.75, 2: 0.25})
        torch.testing.assert_close(stays(x), before)
        # Of others it is the mean, channel by channel, in the order that fits best.
        third = mixture.experts[3]
        wanted = [0.5 * value.float() for value in stays.parameters()]
        fits = expert_pruning.alignment(stays, third)
        assert sorted(fits.tolist()) == list(range(len(order)))
        wanted = [a + 0.5 * b for a, b in zip(wanted, expert_pruning.permuted(third, fits), strict=True)]
        expert_pruning.merge(mixture.experts, 1, {1: 0.5, 3: 0.5})
        assert all(torch.equal(a, b) for a, b in zip(stays.parameters(), wanted, strict=True))


def test_an_alignment_is_the_best_of_all(tmp_path: Path) -> None:
    """Of experts of four channels all permutations are tried."""
    experts = [
        new_expert([torch.randn(shape) for shape in ((4, 6), (4, 6), (6, 4))], PROJECTIONS, nn.SiLU()) for _ in "ab"
    ]

    def fit(order: Sequence[int]) -> float:
        values = expert_pruning.permuted(experts[1], torch.tensor(order))
        return sum((a * b).sum().item() for a, b in zip(experts[0].parameters(), values, strict=True))

    best = max(itertools.permutations(range(4)), key=fit)
    assert expert_pruning.alignment(*experts).tolist() == list(best)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_merged_experts_are_a_checkpoint_of_the_family(name: str, tmp_path: Path) -> None:
    prepare({"source": "path", "path": str(build(tmp_path / "original", name))}, tmp_path / "base")
    calibration = calibrated(tmp_path / "base", tmp_path)
    manifest = made(tmp_path / "v", tmp_path / "base", calibration, removed=0.5, importance="frequency", merge=True)
    assert "failure" not in manifest, manifest["failure"]
    export(tmp_path / "v", tmp_path / "dense", "dense", tmp_path / "base")
    assert_close(logits(plain(tmp_path / "dense")), logits(load(tmp_path / "v", base=tmp_path / "base")))
    layers = json.loads((tmp_path / "v" / "layers.json").read_text())
    assert min(layer["weight_sqnr"] for layer in layers.values()) < 20


def test_nothing_removed_is_the_base(mixtral: tuple[Path, Path], tmp_path: Path) -> None:
    base, calibration = mixtral
    manifest = made(tmp_path / "v", base, calibration, removed=0.0)
    assert "failure" not in manifest, manifest["failure"]
    assert (manifest["severity"], manifest["size_ratio"]) == (0, 1)
    assert torch.equal(logits(load(tmp_path / "v", base=base)), logits(load(base)))


def test_a_made_mixture_is_pruned_through_its_parent(tiny: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    compress(tmp_path / "p", "p", tiny, None, None, [], spec("expert_split", experts=4, top_k=2, router="random"))
    on_parent = spec("expert_pruning", removed=0.5) | {"on": "p"}
    compress(tmp_path / "v", "v", tiny, tmp_path / "p", calibration, [], on_parent)
    manifest = read_manifest(tmp_path / "v")
    assert "failure" not in manifest
    # Half of what the experts hold, which are most of a block.
    assert 0.2 < manifest["severity"] < 0.5
    # A block that goes takes its experts along, and the others are still known by the base's.
    fewer = spec("depth", removed=0.2, order="deepest") | {"on": "v"}
    compress(tmp_path / "d", "d", tiny, tmp_path / "v", calibration, [], fewer)
    shorter = read_manifest(tmp_path / "d")
    assert "failure" not in shorter
    names = list(manifest["experts"])
    kept = [manifest["experts"][name] for index, name in enumerate(names) if index in shorter["blocks"]]
    assert list(shorter["experts"].values()) == kept
    assert list(shorter["experts"]) == names[: len(kept)]
    # Experts that go from experts that stayed.
    compress(
        tmp_path / "t", "t", tiny, tmp_path / "v", None, [], spec("routing", alteration="top_k", amount=1) | {"on": "v"}
    )
    again = spec("expert_pruning", removed=0.5, importance="random") | {"on": "t"}
    compress(tmp_path / "w", "w", tiny, tmp_path / "t", None, [], again)
    last = read_manifest(tmp_path / "w")
    assert "failure" not in last
    assert all(set(last["experts"][name]) < set(manifest["experts"][name]) for name in names)


@pytest.mark.parametrize(
    ("config", "removed", "reason"),
    [
        ({}, 0.5, "needs a model with experts"),
        ({"num_experts": [4, 8], "num_experts_per_tok": 2}, 0.5, "the same number of experts in all blocks"),
        ({"num_experts": 8, "num_experts_per_tok": [2, 6, 2]}, 0.5, "a token takes 6, so at most 2 can"),
        ({"num_experts": 8, "num_experts_per_tok": 2}, 0.05, "takes out 0; at least 1 must go"),
        ({"num_experts": 8, "num_experts_per_tok": 2}, 0.9, "a token takes 2, so at most 6 can"),
        (
            {"num_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2},
            0.75,
            "a token takes 4 from 2 of 4 groups, so at most 8 can",
        ),
        ({"num_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}, 0.3, "a multiple of 4"),
        ({"num_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}, 0.5, "None"),
        ({"num_experts": 8, "num_experts_per_tok": 2}, 0.0, "None"),
    ],
)
def test_what_a_configuration_rules_out(config: dict[str, Any], removed: float, reason: str) -> None:
    assert reason in str(expert_pruning.Settings(removed=removed).check(config))


def test_a_router_that_can_not_choose_from_fewer_is_refused(tmp_path: Path) -> None:
    # A group's score is the sum of its two best experts.
    model = load(build(tmp_path, "deepseek_v3", n_routed_experts=4, n_group=2, topk_group=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RefusedError, match="can't choose from 2 experts"):
        expert_pruning.Settings(removed=0.5).check_model(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_configuration_that_can_not_say_it_is_refused(tmp_path: Path) -> None:
    # Jamba makes a plain MLP of a single expert.
    model = load(build(tmp_path, "jamba", num_experts_per_tok=1))
    assert expert_pruning.Settings(removed=0.5).check_model(model) is None
    with pytest.raises(RefusedError, match="can't say that a block has 1 experts"):
        expert_pruning.Settings(removed=0.75).check_model(model)
