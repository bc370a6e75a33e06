"""Experts as linear layers compute what transformers' fused ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hemorrhage.models.architecture import skeleton
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import LAYOUTS, Experts, every_token, mixtures, routing_layers, unfuse
from hemorrhage.models.refused import RefusedError
from tests.families import COMMON, MLA, build
from tests.tiny_moe import EXPERTS, OWN, new_model

TOKENS = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind in OWN])
def test_taken_apart_a_model_computes_the_same_under_the_names_of_its_checkpoints(kind: str) -> None:
    model: Any = new_model(kind).eval()
    fused = {name: value for name, value in model.named_parameters() if value.dim() == 3}
    assert fused
    with torch.no_grad():
        expected = model(TOKENS).logits
        unfuse(model)
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
    assert not [value for value in model.parameters() if value.dim() == 3]
    inside, parts = LAYOUTS[kind]
    names = {name for name, _ in model.named_parameters()}
    for layer in range(2):
        for expert in range(EXPERTS):
            assert {f"model.layers.{layer}.{inside}.experts.{expert}.{part}.weight" for part in parts} <= names
    assert list(mixtures(model)) == [f"model.layers.{layer}.{inside}" for layer in range(2)]
    before = dict(model.named_modules())
    unfuse(model)
    assert dict(model.named_modules()) == before, "a second time changes nothing"


def test_tokens_are_summed_over_their_experts() -> None:
    model: Any = new_model("mixtral")
    unfuse(model)
    experts: Any = next(iter(mixtures(model).values())).experts
    assert isinstance(experts, Experts)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [1, 2]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = experts(x, chosen, weights)
        for row in range(5):
            parts = [weights[row, k] * experts[int(chosen[row, k])](x[row : row + 1])[0] for k in range(2)]
            torch.testing.assert_close(found[row], parts[0] + parts[1], rtol=1e-4, atol=1e-6)
        seen: list[int] = []
        hook = experts[3].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
        assert torch.equal(experts(x, chosen, weights), found)
        assert seen == [], "nobody was routed to it"
        with every_token(model):
            torch.testing.assert_close(experts(x, chosen, weights), found, rtol=1e-4, atol=1e-6)
        assert seen == [5]
        experts(x, chosen, weights)
        assert seen == [5]
        hook.remove()


def test_experts_that_sort_their_tokens_see_all_of_them_where_that_is_wanted(tmp_path: Path) -> None:
    model = load(build(tmp_path, "llama4_text"))
    mixture = next(iter(mixtures(model).values()))
    seen: list[torch.Tensor] = []
    for expert in mixture.experts:
        expert.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        assert sum(int((given != 0).any(-1).sum()) for given in seen) == TOKENS.numel(), "a token takes one expert"
        seen.clear()
        with every_token(model):
            torch.testing.assert_close(model(TOKENS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
        assert all((given != 0).any(-1).all() for given in seen)
        torch.testing.assert_close(model(TOKENS, use_cache=False).logits, expected, rtol=0, atol=0)


def test_what_routes_is_named_for_those_who_leave_it_alone() -> None:
    model: Any = new_model("qwen2_moe")
    unfuse(model)
    gates = [f"model.layers.{layer}.mlp.{part}" for layer in range(2) for part in ("gate", "shared_expert_gate")]
    assert routing_layers(model) == gates
    dense: Any = torch.nn.Linear(2, 2)
    assert routing_layers(dense) == []


def test_a_large_tensor_in_no_known_mixture_is_refused() -> None:
    model: Any = new_model("mixtral")
    model.model.layers[0].odd = torch.nn.Parameter(torch.zeros(EXPERTS, 128, 128))
    with pytest.raises(RefusedError, match="odd"):
        unfuse(model)


def test_experts_without_weights_are_refused() -> None:
    """LongCat has experts that give back what they get: they have gates in transformers, and nothing else."""
    config = AutoConfig.for_model(
        "longcat_flash", **COMMON | MLA, num_layers=2, n_routed_experts=4, zero_expert_num=2, moe_topk=2, head_dim=8
    )
    with pytest.raises(RefusedError, match="a longcat_flash has gates of 6 experts and down projections of 4"):
        unfuse(skeleton(config))
