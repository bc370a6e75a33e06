"""FSD against a slow, literal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.stops import Stops
from hemorrhage.decode.strategies import (
    fsd,
    greedy,
)
from tests.decode.literal import cosine, padded, states_of, texts


def fsd_reference(
    model: Any,
    ids: list[int],
    new_tokens: int,
    alpha: float,
    k: int,
    n: int,
    free: Sequence[int] = (),
    ends: bool = True,
) -> list[int]:
    """``free``: tokens without penalty; where a text does not ``end``, its end is no candidate."""
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        states = states_of(model, ids)
        p = model.lm_head(states[-1]).softmax(-1)
        if not ends:
            p[list(end_tokens(model))] = -torch.inf
        scores = {}
        for token in p.topk(k).indices.tolist():
            penalty = 0.0
            # Every n-gram of the text: n - 1 tokens from `first`, and the token behind them.
            for first in range(len(ids) - n + 1):
                if ids[first + n - 1] == token:
                    key, query = states[first : first + n - 1].flatten(), states[-(n - 1) :].flatten()
                    penalty = max(penalty, min(1.0, cosine(query, key)))
            scores[token] = (1 - alpha) * float(p[token]) - alpha * (0.0 if token in free else penalty)
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


@pytest.mark.parametrize(("alpha", "k", "n"), [(0.45, 3, 2), (0.6, 4, 3), (0.8, 4, 4)])
def test_fsd_is_the_literal_one(model: Any, prompts: list[list[int]], alpha: float, k: int, n: int) -> None:
    settings = fsd.Settings(alpha=alpha, k=k, n=n)
    with torch.no_grad():
        expected = [fsd_reference(model, ids, 28, alpha, k, n) for ids in prompts]
    assert texts(model, generate(fsd, model, *padded(prompts), 28, settings, 0)) == expected
    assert expected != texts(model, generate(greedy, model, *padded(prompts), 28, greedy.Settings(), 0))


def test_no_penalty_is_greedy_search(model: Any, prompts: list[list[int]]) -> None:
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    assert torch.equal(generate(fsd, model, *padded(prompts), 24, fsd.Settings(n=2, alpha=0), 0), greedily)


def test_any_user_of_transformers_can_pass_it_to_generate(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(prompt, max_new_tokens=12, custom_generate=fsd.fsd, alpha=0.6, candidates=4, order=3)
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == fsd_reference(model, prompts[2], 12, 0.6, 4, 3)


def test_stop_words_are_not_penalized_and_a_text_may_have_no_end(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = fsd.Settings
    usual = generate(fsd, model, *padded(prompts), 28, made(alpha=0.6), 0)
    # What the texts repeat, and where one of them would end.
    word, end = int(usual[0].mode().values), int(usual[1][6])
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    settings = made(alpha=0.6, stop_words=(tokenizer.decode([word]),), ends=False)
    with torch.no_grad():
        expected = [fsd_reference(model, ids, 28, 0.6, 3, 2, [word], ends=False) for ids in prompts]
    found = generate(fsd, model, *padded(prompts), 28, settings, 0, stops=Stops(tokenizer))
    assert found.tolist() == expected
    assert found.shape == (len(prompts), 28)
    assert end not in found


def test_stop_words_that_a_model_lacks_are_refused(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    made: Any = fsd.Settings
    settings = made(stop_words=("no such token",))
    with pytest.raises(ValueError, match="none is a token of this model"):
        generate(fsd, model, *padded(prompts), 4, settings, 0, stops=Stops(tokenizer))
