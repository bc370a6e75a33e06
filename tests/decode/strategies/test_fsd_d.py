"""Discrete FSD against a slow, literal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.stops import Stops
from hemorrhage.decode.strategies import (
    fsd_d,
    greedy,
)
from tests.decode.literal import padded, texts


def fsd_d_reference(
    model: Any,
    ids: list[int],
    new_tokens: int,
    alpha: float,
    k: int,
    n: int,
    beta: float,
    free: Sequence[int] = (),
    ends: bool = True,
) -> list[int]:
    """``free``: tokens without penalty; where a text does not ``end``, its end is no candidate."""
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        p = model(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)
        if not ends:
            p[list(end_tokens(model))] = -torch.inf
        scores = {}
        for token in p.topk(k).indices.tolist():
            penalty, rest = 0.0, 1.0
            for i in range(n - 1, -1, -1) if len(ids) >= n - 1 else ():
                # What stands behind each place where the last i tokens stand.
                context = ids[len(ids) - i :]
                followers = [ids[at + i] for at in range(len(ids) - i) if ids[at : at + i] == context]
                count = followers.count(token)
                if count == 0:
                    continue
                penalty += rest * (beta * count / (len(followers) + 1) if i else count / len(followers))
                rest *= 1 - beta
            scores[token] = (1 - alpha) * float(p[token]) - alpha * (0.0 if token in free else penalty)
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


@pytest.mark.parametrize(
    ("alpha", "k", "n", "beta"), [(0.6, 5, 3, 0.9), (0.3, 3, 2, 0.5), (0.8, 4, 4, 1.0), (0.7, 4, 5, 0.7)]
)
def test_discrete_fsd_is_the_literal_one(
    model: Any, prompts: list[list[int]], alpha: float, k: int, n: int, beta: float
) -> None:
    settings = fsd_d.Settings(alpha=alpha, k=k, n=n, beta=beta)
    with torch.no_grad():
        expected = [fsd_d_reference(model, ids, 28, alpha, k, n, beta) for ids in prompts]
    assert texts(model, generate(fsd_d, model, *padded(prompts), 28, settings, 0)) == expected
    assert expected != texts(model, generate(greedy, model, *padded(prompts), 28, greedy.Settings(), 0))


def test_a_token_costs_the_ngram_table_the_same_however_long_the_text_is() -> None:
    class Counted(dict[tuple[int, ...], Any]):
        looked = 0

        def __getitem__(self, key: tuple[int, ...]) -> Any:
            self.looked += 1
            return super().__getitem__(key)

    def looks(length: int) -> int:
        table = fsd_d.NGrams(order=3, beta=0.9)
        table.extend([i * i % 7 for i in range(length)])
        followers = Counted(table.followers)
        table.followers = followers  # type: ignore[assignment]
        for token in range(7):
            table.penalty(token)
        return followers.looked

    assert looks(2000) == looks(20) <= 7 * 3


def test_the_ngram_penalty_is_a_logits_processor(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    processor = fsd_d.NGramPenalty(alpha=0.5, candidates=4, order=3, beta=0.8)
    generated = model.generate(prompt, max_new_tokens=12, logits_processor=[processor])
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == fsd_d_reference(model, prompts[2], 12, 0.5, 4, 3, 0.8)


def test_no_penalty_is_greedy_search(model: Any, prompts: list[list[int]]) -> None:
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    assert torch.equal(
        generate(fsd_d, model, *padded(prompts), 24, fsd_d.Settings(n=3, alpha=0, beta=0.9), 0), greedily
    )


def test_stop_words_are_not_penalized_and_a_text_may_have_no_end(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = fsd_d.Settings
    usual = generate(fsd_d, model, *padded(prompts), 28, made(), 0)
    word, end = int(usual[0].mode().values), int(usual[1][6])
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    settings = made(stop_words=(tokenizer.decode([word]),), ends=False)
    found = generate(fsd_d, model, *padded(prompts), 28, settings, 0, stops=Stops(tokenizer))
    assert found.shape == (len(prompts), 28)
    assert end not in found
    with torch.no_grad():
        expected = [fsd_d_reference(model, ids, 28, 0.6, 5, 3, 0.9, [word], ends=False) for ids in prompts]
    assert found.tolist() == expected
    assert not torch.equal(found, usual)
