"""Scores of cached tokens against their papers' formulas, number by number, on small arrays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hemorrhage.models.emulation import eviction_scores
from hemorrhage.models.emulation.evicted import evicted_tokens


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: list[float]) -> list[float]:
    total = sum(math.exp(each - max(x)) for each in x)
    return [math.exp(each - max(x)) / total for each in x]


def dot(a: Tensor, b: Tensor) -> float:
    return sum((float(x) * float(y) for x, y in zip(a, b, strict=True)), 0.0)


def test_streaming_llm_keeps_the_sinks_and_the_newest() -> None:
    evicted = eviction_scores.lowest(eviction_scores.streaming_llm(random(2, 10, 4), sinks=2), 0.5)
    assert evicted.tolist() == [[False] * 2 + [True] * 5 + [False] * 3] * 2


def test_of_a_short_prompt_the_first_sinks_stay() -> None:
    evicted = eviction_scores.lowest(eviction_scores.streaming_llm(random(2, 12, 4), sinks=4), 0.75)
    assert evicted.tolist() == [[False] * 3 + [True] * 9] * 2


def test_snapkv_is_its_papers_listing() -> None:
    # Two key-value heads, two queries each, 9 tokens of which the last 3 observe, neighbours in threes.
    queries, keys = random(4, 9, 6), random(2, 9, 6, seed=1)
    scores = eviction_scores.snapkv(queries, keys, scaling=0.4, window=3, kernel=3)
    for head in range(2):
        pooled = []
        for query_head in (2 * head, 2 * head + 1):
            observed = [0.0] * 6
            for position in (6, 7, 8):
                weights = softmax(
                    [0.4 * dot(queries[query_head, position], keys[head, t]) for t in range(position + 1)]
                )
                observed = [sum(pair) for pair in zip(observed, weights[:6], strict=True)]
            padded = [0.0, *(each / 3 for each in observed), 0.0]
            pooled.append([sum(padded[t : t + 3]) / 3 for t in range(6)])
        expected = [(a + b) / 2 for a, b in zip(*pooled, strict=True)]
        assert scores[head, :6].tolist() == pytest.approx(expected, rel=1e-5)
    assert scores[:, 6:].isinf().all()
    # All of a short prompt observes.
    assert eviction_scores.snapkv(queries, keys, 0.4, window=20, kernel=3).isinf().all()


def test_key_norm_keeps_small_keys() -> None:
    keys = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 2.0], [1.0, 0.0]]])
    assert eviction_scores.key_norm(keys)[0].tolist() == pytest.approx([-5, -0.5, -2, -1])
    assert eviction_scores.lowest(eviction_scores.key_norm(keys), 0.5).tolist() == [[True, False, True, False]]


def test_expected_attention_is_its_papers_formula() -> None:
    # exp(μ k / √d + k Σ k / 2d) for each query head, normalised over the keys, averaged, times the value's norm.
    queries, keys, values = random(4, 8, 6), random(2, 8, 6, seed=1), random(2, 8, 6, seed=2)
    rotation, scaling, sinks = random(6, 6, seed=3) / 2, 6**-0.5, 2
    scores = eviction_scores.expected_attention(queries, keys, values, rotation, scaling, sinks)
    for head in range(2):
        expected = [0.0] * 6
        for query_head in (2 * head, 2 * head + 1):
            seen = [queries[query_head, t] for t in range(sinks, 8)]
            mean = torch.stack(seen).mean(0)
            covariance = sum((torch.outer(q - mean, q - mean) for q in seen), torch.zeros(6, 6)) / len(seen)
            turned, spread = rotation @ mean, rotation @ covariance @ rotation.T
            logits = [
                scaling * dot(turned, keys[head, t]) + scaling**2 / 2 * dot(spread @ keys[head, t], keys[head, t])
                for t in range(sinks, 8)
            ]
            expected = [a + b / 2 for a, b in zip(expected, softmax(logits), strict=True)]
        expected = [each * math.sqrt(dot(v, v)) for each, v in zip(expected, values[head, sinks:], strict=True)]
        assert scores[head, sinks:].tolist() == pytest.approx(expected, rel=1e-4)
    assert scores[:, :sinks].isinf().all()
    assert eviction_scores.expected_attention(queries, keys, values, rotation, scaling, sinks=9).isinf().all()


def test_expected_attention_is_the_mean_over_queries() -> None:
    # The expectation of exp(q k / √d) over queries that are nearly normal, taken query by query.
    tokens, keys = 4000, random(1, 5, 3, seed=2)
    queries = random(3) + random(tokens, 3, seed=3) @ random(3, 3, seed=1) / 3
    padded = torch.cat([keys[0], torch.full((tokens - 5, 3), 0.0)])[None]
    scores = eviction_scores.expected_attention(
        queries[None], padded, torch.ones(1, tokens, 3), torch.eye(3), 3**-0.5, sinks=0
    )
    attention = (queries @ padded[0].T * 3**-0.5).exp().mean(0)
    torch.testing.assert_close(scores[0] / scores[0, 5], attention / attention[5], rtol=0.05, atol=0)


@pytest.mark.parametrize(("tokens", "ratio", "number"), [(10, 0.3, 3), (10, 0.35, 3), (3, 0.3, 0), (100, 0.29, 29)])
def test_the_share_is_rounded_down_to_whole_tokens(tokens: int, ratio: float, number: int) -> None:
    assert evicted_tokens(tokens, ratio) == number
    evicted = eviction_scores.lowest(torch.zeros(2, tokens), ratio)
    # Of equal scores the older token goes.
    assert evicted.tolist() == [[True] * number + [False] * (tokens - number)] * 2
