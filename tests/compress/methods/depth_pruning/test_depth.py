"""Blocks taken out and put in: identities, order, and that the result still generates and loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import depth_up_scaling, duplication, llama_pro
from hemorrhage.compress.methods.depth_pruning import depth
from hemorrhage.compress.solvers.stack import rearrange
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import verify
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.stacks import TOKENS, altered, places
from tests.layers import block_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


def test_shortgpt_takes_out_the_blocks_of_lowest_influence(tiny: Path, calibration: Path) -> None:
    model = altered(tiny, depth, calibration, removed=0.4, order="influence")
    influence = Statistics(calibration).block_influence()
    kept = sorted(sorted(range(5), key=lambda i: -influence[i])[:3])
    assert places(model) == kept
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_angular_takes_out_the_run_across_which_the_last_token_turns_least(
    tiny: Path, calibration: Path, number: int
) -> None:
    model = load(tiny)
    with torch.no_grad():
        states = model(Statistics(calibration).tokens(), output_hidden_states=True).hidden_states
    # transformers gives the last block's output after the final norm, so a hook has to see it.
    last = []
    hook = block_of(model, -1).register_forward_hook(lambda block, inputs, output: last.append(output))
    with torch.no_grad():
        model(Statistics(calibration).tokens())
    hook.remove()
    entering = [*states[:-1], last[0]]

    def angle(first: int) -> float:
        a, b = entering[first][:, -1].double(), entering[first + number][:, -1].double()
        return (torch.cosine_similarity(a, b, dim=-1).arccos() / torch.pi).mean().item()

    best = min(range(5 - number + 1), key=angle)
    expected = [index for index in range(5) if not best <= index < best + number]
    assert places(altered(tiny, depth, calibration, removed=number / 5, order="angular")) == expected


def test_nearest_run_is_the_least_of_its_diagonal() -> None:
    distance = torch.ones(7, 7)
    distance[2, 4] = 0.1
    distance[0, 1] = 0.0
    distance[3, 6] = 0.2
    assert depth.nearest_run(distance, 1) == {0}
    assert depth.nearest_run(distance, 2) == {2, 3}
    assert depth.nearest_run(distance, 3) == {3, 4, 5}


def test_deepest_leaves_the_last(tiny: Path) -> None:
    assert places(altered(tiny, depth, removed=0.4, order="deepest")) == [0, 1, 4]
    assert places(altered(tiny, depth, removed=0.8, order="deepest")) == [4]


def literal_sleb(base: Path, tokens: Tensor, removed: int, dtype: str = "float32") -> list[int]:
    """Every candidate tried in a shortened model of its own."""
    kept = list(range(5))
    for _ in range(removed):
        losses = {}
        for candidate in kept[1:-1]:
            model = load(base, dtype).float()
            rearrange(model, [index for index in kept if index != candidate])
            with torch.no_grad():
                losses[candidate] = model(tokens, labels=tokens).loss.item()
        kept.remove(min(losses, key=lambda index: losses[index]))
    return kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("samples", [1, 3, 6])
def test_sleb_is_the_greedy_search(
    tiny: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch, samples: int, dtype: str
) -> None:
    monkeypatch.setattr(depth, "BATCH_TOKENS", 64)  # two windows: several batches
    statistics = Statistics(calibration)
    for number in (1, 3):
        model = load(tiny, dtype)
        stack: Any = blocks(model)
        for index, block in enumerate(stack):
            block.place = index
        settings = depth.Settings(removed=number / 5, order="sleb", samples=samples)
        depth.alter(model, settings, Context(statistics))
        assert places(model) == literal_sleb(tiny, statistics.tokens()[:samples], number, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
        assert "forward" not in vars(blocks(model)[0])


def test_sleb_needs_the_windows_it_is_asked_to_measure(tiny: Path, calibration: Path) -> None:
    with pytest.raises(ValueError, match="samples is 16; the calibration set has 6 windows"):
        altered(tiny, depth, calibration, removed=0.2, order="sleb")
    assert depth.Settings(removed=0.2, order="sleb").model_dump()["samples"] == 16
    with pytest.raises(ValueError, match="samples is for order sleb"):
        depth.Settings(removed=0.2, order="random", samples=4)


def test_random_depth_follows_its_seed_and_needs_no_statistics(tiny: Path) -> None:
    drawn = [tuple(places(altered(tiny, depth, seed=s, removed=0.4, order="random"))) for s in range(12)]
    assert all(len(kept) == 3 and list(kept) == sorted(kept) for kept in drawn)
    assert len(set(drawn)) > 3
    assert drawn[0] == tuple(places(altered(tiny, depth, seed=0, removed=0.4, order="random")))
    assert depth.Settings(removed=0.4, order="random").statistics == ()
    assert depth.Settings(removed=0.4, order="influence").statistics == ("influence",)


def test_a_removed_block_is_skipped(tiny: Path) -> None:
    """The shortened model computes what the whole one does with the block replaced by identity."""
    model = altered(tiny, depth, seed=1, removed=0.2, order="random")
    (gone,) = set(range(5)) - set(places(model))
    whole = load(tiny)
    block_of(whole, gone).forward = lambda hidden, **_: hidden
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, whole(TOKENS).logits)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (depth, {"removed": 0.4, "order": "random"}),
        (llama_pro, {"added": 0.4}),
        (duplication, {"added": 0.4}),
        (depth_up_scaling, {"overlap": 0.25}),
    ],
)
def test_generation_with_the_cache_is_that_without(tiny: Path, method: Any, settings: dict[str, Any]) -> None:
    model = altered(tiny, method, **settings)
    indices = [module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")]
    assert indices == list(range(len(blocks(model))))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(TOKENS, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(TOKENS, use_cache=False, **options))


@pytest.mark.parametrize(
    ("method", "settings", "layers", "severity"),
    [
        ("depth", {"removed": 0.4, "order": "influence"}, 3, 0.4),
        ("depth", {"removed": 0.4, "order": "sleb", "samples": 2}, 3, 0.4),
        ("llama_pro", {"added": 0.25}, 6, 0.2),
        ("duplication", {"added": 0.6}, 8, 0.6),
        ("depth_up_scaling", {"overlap": 0.25}, 8, 0.6),
    ],
)
def test_checkpoints_load_and_say_what_was_done(
    tiny: Path,
    calibration: Path,
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    layers: int,
    severity: float,
) -> None:
    out = tmp_path / "out"
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, "v", tiny, None, calibration, [], spec)
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    model = load(out, base=tiny)
    verify(model, out)
    assert len(blocks(model)) == manifest["layers"] == layers
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == layers
    assert manifest["severity"] == pytest.approx(severity)
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert manifest["effective_bits"] == 32.0
    base = sum(parameter.numel() for parameter in load(tiny).parameters())
    assert manifest["size_ratio"] == pytest.approx(manifest["parameters"] / base)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / file).read_bytes() == (tiny / file).read_bytes()


def test_impossible_shares_are_refused() -> None:
    config = {"num_hidden_layers": 5}
    assert "takes out 0" in str(depth.Settings(removed=0.05, order="random").check(config))
    assert "takes out 5" in str(depth.Settings(removed=0.95, order="random").check(config))
    assert depth.Settings(removed=0.5, order="random").check(config) is None
    assert depth.Settings(removed=0.8, order="deepest").check(config) is None
    assert "2 must stay" in str(depth.Settings(removed=0.8, order="sleb").check(config))
    assert "is no layer" in str(llama_pro.Settings(added=0.05).check(config))
    assert "no layer would come twice" in str(depth_up_scaling.Settings(overlap=0.05).check(config))
    assert depth_up_scaling.Settings().check({"num_hidden_layers": 32}) is None


def test_labels() -> None:
    assert depth.Settings(removed=0.3, order="influence").label == "30 % of layers, influence"
    assert depth.Settings(removed=0.3, order="influence").curve == "influence"
    assert depth.Settings(removed=0.3, order="angular").statistics == ("influence",)
    assert depth.Settings(removed=0.3, order="deepest").statistics == ()
    sleb = depth.Settings(removed=0.3, order="sleb")
    assert (sleb.curve, sleb.statistics) == ("sleb, 16 windows", ("tokens",))
    assert depth.Settings(removed=0.3, order="sleb", samples=8).curve == "sleb, 8 windows"
    assert duplication.Settings(added=0.2).curve == ""
    assert duplication.Settings(added=0.2, scale=0.5).label == "+20 % of layers, copies scaled by 0.5"
    assert llama_pro.Settings().label == "+25 % of layers"
    assert depth_up_scaling.Settings().severity == 0.5
