"""Contrastive search against a slow, literal one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.strategies import (
    contrastive_search,
    greedy,
)
from tests.decode.literal import cosine, padded, states_of, texts


def contrastive_reference(model: Any, ids: list[int], new_tokens: int, alpha: float, k: int) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        past = states_of(model, ids)
        p = model.lm_head(past[-1]).softmax(-1)
        scores = {}
        for token in p.topk(k).indices.tolist():
            state = states_of(model, [*ids, token])[-1]
            likeness = max(cosine(state, past[j]) for j in range(len(ids)))
            scores[token] = (1 - alpha) * float(p[token]) - alpha * likeness
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.9, 3)])
def test_contrastive_search_is_the_literal_one(model: Any, prompts: list[list[int]], alpha: float, k: int) -> None:
    settings = contrastive_search.Settings(alpha=alpha, k=k)
    with torch.no_grad():
        expected = [contrastive_reference(model, ids, 14, alpha, k) for ids in prompts]
    assert texts(model, generate(contrastive_search, model, *padded(prompts), 14, settings, 0)) == expected
    greedily = texts(model, generate(greedy, model, *padded(prompts), 14, greedy.Settings(), 0))
    assert expected != greedily


def test_contrastive_search_runs_the_model_once_per_step(model: Any, prompts: list[list[int]]) -> None:
    rows: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        generate(contrastive_search, model, *padded(prompts), 5, contrastive_search.Settings(k=4), 0)
    finally:
        hook.remove()
    assert rows == [(3, max(map(len, prompts))), *[(12, 1)] * 5]


def test_no_penalty_is_greedy_search(model: Any, prompts: list[list[int]]) -> None:
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    assert torch.equal(
        generate(contrastive_search, model, *padded(prompts), 24, contrastive_search.Settings(alpha=0), 0), greedily
    )


def test_any_user_of_transformers_can_pass_it_to_generate(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(
        prompt, max_new_tokens=12, custom_generate=contrastive_search.contrastive_search, alpha=0.3, candidates=5
    )
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == contrastive_reference(model, prompts[2], 12, 0.3, 5)
