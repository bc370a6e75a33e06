"""Which experts tokens reach, counted by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hemorrhage.calibrate.expert_usage import Usage, mlp_inputs, usage, without_tokens
from hemorrhage.models.experts import mixtures, unfuse
from tests.tiny_moe import EXPERTS, new_model

TOKENS = torch.randint(3, 500, (3, 10), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


@pytest.fixture(scope="module")
def model() -> Any:
    made = new_model("mixtral").eval()
    unfuse(made)
    return made


def seen_by_hooks(model: Any) -> dict[str, torch.Tensor]:
    """What each mixture reads in plain passes of the whole model, a window at a time."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in mixtures(model)}
    hooks = [
        mixture.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0].flatten(0, -2)))
        for name, mixture in mixtures(model).items()
    ]
    with torch.no_grad():
        for window in TOKENS.long():
            model(window[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_inputs_are_those_of_the_unaltered_model_block_by_block(model: Any) -> None:
    expected = list(seen_by_hooks(model).values())
    for index, mlp, x in mlp_inputs(model, TOKENS):
        assert mlp is model.model.layers[index].mlp
        torch.testing.assert_close(x, expected[index], rtol=1e-4, atol=1e-5)


def test_usage_is_what_counting_gives(model: Any) -> None:
    found = usage(model, TOKENS)
    for name, x in seen_by_hooks(model).items():
        logits = x @ mixtures(model)[name].gate.weight.T
        tally = [0] * EXPERTS
        entropies = []
        for row in logits.double():
            p = row.softmax(-1).tolist()
            for expert in sorted(range(EXPERTS), key=[-share for share in p].__getitem__)[:2]:
                tally[expert] += 1
            entropies.append(-sum(share * math.log(share) for share in p))
        assert found[name]["tokens"] == tally
        assert sum(tally) == 2 * TOKENS.numel()
        shares = [count / sum(tally) for count in tally if count]
        entropy = -sum(share * math.log(share) for share in shares) / math.log(EXPERTS)
        assert found[name]["load_entropy"] == pytest.approx(entropy)
        assert found[name]["routing_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_experts_that_no_token_reaches_are_named() -> None:
    usages = {
        "a": Usage(tokens=[3, 0, 1, 0], load_entropy=0.0, routing_entropy=0.0),
        "b": Usage(tokens=[1, 1, 1, 1], load_entropy=1.0, routing_entropy=0.0),
    }
    assert without_tokens(usages) == ["a.experts.1", "a.experts.3"]
