"""Mixtures of experts against counting."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.moe import routing, upcycling
from hemorrhage.evaluate.diagnostics import routing as routers
from hemorrhage.evaluate.diagnostics.collect import base_side, measure
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import mixtures, unfuse
from tests import tiny_moe
from tests.evaluate.diagnostics.literal import drawn, of, value


@pytest.mark.parametrize("kind", sorted(tiny_moe.OWN))
def test_experts_against_counting(kind: str) -> None:
    model = tiny_moe.new_model(kind).eval()
    unfuse(model)
    tokens = drawn(500, 2, 16)
    of_base = base_side(model, tokens)
    found = measure(model, of_base, None, ablate=False)
    mixture = next(iter(mixtures(model).values()))
    seen: list[Tensor] = []
    hook = mixture.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(tokens.long())
    hook.remove()
    with torch.no_grad():
        probability = (seen[0].double() @ mixture.gate.weight.double().T).softmax(-1)
    counts, entropies = [0] * 4, []
    for token in probability[1]:
        entropies.append(-sum(p * math.log(p) for p in token.tolist()) / math.log(4))
    for token in probability.flatten(0, 1):
        for expert in sorted(range(4), key=lambda e: -float(token[e]))[:2]:
            counts[expert] += 1
    assert value(found, "routing_entropy", 0, 1) == pytest.approx(np.mean(entropies), rel=1e-4)
    assert value(found, "expert_load_cv", 0) == pytest.approx(np.std(counts) / np.mean(counts), rel=1e-6)
    assert value(found, "experts_unused", 0) == counts.count(0) / 4
    assert (of(found, "routing_agreement") == 1).all()
    assert (of(found, "experts_dropped") == 0).all()
    with torch.no_grad():
        mixture.gate.weight[:] = mixture.gate.weight[[2, 3, 0, 1]]
    shuffled = measure(model, of_base, None, ablate=False)
    both = [len({(e + 2) % 4 for e in chosen} & set(chosen)) / 2 for chosen in of_base["routing.0"][1].tolist()]
    assert value(shuffled, "routing_agreement", 0, 1) == pytest.approx(np.mean(both))


def test_dropped_experts_and_experts_of_a_dense_base(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = tiny_moe.new_model("mixtral").eval()
    unfuse(model)
    own = base_side(model, drawn(500, 2, 16))
    routing.alter(model, routing.Settings(alteration="drop", amount=0.5, choose="random"), Context())
    found = measure(model, own, None, ablate=False)
    assert (of(found, "experts_dropped") == 0.5).all()
    assert "routing_agreement" not in set(found.metric)
    copied = load(tiny)
    upcycling.alter(copied, upcycling.Settings(), Context())
    found = measure(copied, of_base, None, ablate=False)
    assert of(found, "local_error").max() < 1e-5
    assert {"routing_entropy", "expert_load_cv"} <= set(found.metric)
    assert "experts_dropped" not in set(found.metric)


def test_uncertainty_is_0_of_a_sure_router_and_1_of_one_that_guesses() -> None:
    sure, guessing = torch.tensor([[100.0, 0, 0, 0]]).repeat(3, 1), torch.zeros(3, 4)
    assert routers.uncertainty(torch.stack([sure, guessing])).tolist() == pytest.approx([0, 1])


def test_agreement_is_the_share_of_the_bases_choices_whatever_their_order() -> None:
    of_base = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    chosen = torch.tensor([[[1, 0], [3, 1]], [[2, 3], [0, 1]]])
    assert routers.agreement(chosen, of_base).tolist() == [0.75, 0]


def test_load_is_even_where_all_get_the_same() -> None:
    even, one = torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[[2, 2], [2, 2]]])
    assert {name: value.tolist() for name, value in routers.load(even, 4).items()} == {
        "expert_load_cv": [0.0],
        "experts_unused": [0.0],
    }
    # One expert gets 4 of 4 tokens, three get none: deviation sqrt(3) over mean 1.
    found = routers.load(one, 4)
    assert found["expert_load_cv"].item() == pytest.approx(3**0.5)
    assert found["experts_unused"].item() == 0.75
