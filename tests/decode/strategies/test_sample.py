"""Compositions against transformers' own processors, one by one and composed, and against vLLM's order by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GenerationConfig

from hemorrhage.decode.generation import generate
from hemorrhage.decode.strategies import greedy, sample
from tests.decode.literal import padded, texts

VOCABULARY = 97

SETTINGS: Any = sample.Settings

PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "temperature": ({"temperature": 0.6}, {"temperature": 0.6}),
    "top_k": ({"top_k": 7}, {"top_k": 7}),
    "top_p": ({"top_p": 0.83}, {"top_p": 0.83}),
    "min_p": ({"min_p": 0.07}, {"min_p": 0.07}),
    "typical": ({"typical": 0.7}, {"typical_p": 0.7}),
    "epsilon": ({"epsilon": 0.01}, {"epsilon_cutoff": 0.01}),
    "eta": ({"eta": 0.02}, {"eta_cutoff": 0.02}),
    "repetition_penalty": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    "no_repeat_ngram": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
}
"""Part -> our settings, and transformers' of the same."""

COMPOSED = {
    "recommended": ("temperature", "top_p"),
    "three": ("temperature", "top_k", "top_p"),
    "penalized": ("repetition_penalty", "no_repeat_ngram", "temperature", "min_p"),
    "all": tuple(PARTS),
}


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits [3, 97] of models that were stored in bfloat16: several are equal."""
    drawn = 4 * torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(3))
    return drawn.bfloat16().to(dtype)


def context(length: int = 11) -> torch.Tensor:
    """Tokens [3, length] in which many are repeated."""
    return torch.randint(6, (3, length), generator=torch.Generator().manual_seed(5))


def distribution(processors: Any, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    for processor in processors:
        scores = processor(ids, scores)
    return scores.softmax(-1)


def ours(ids: torch.Tensor, scores: torch.Tensor, prompt: int = 4, **settings: Any) -> torch.Tensor:
    mask = torch.ones_like(ids[:, :prompt])
    return distribution(sample.processors(SETTINGS(**settings), mask), ids, scores)


def theirs(model: Any, ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
    """What ``generate`` would draw from: its own list of processors, in its own order."""
    config = GenerationConfig(**{"top_k": 0, **options, "do_sample": True})
    config._eos_token_tensor = torch.tensor([2])
    return distribution(model._get_logits_processor(config, input_ids_seq_length=4, device="cpu"), ids, scores)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_transformers_own(model: Any, part: str) -> None:
    mine, their = PARTS[part]
    expected = theirs(model, context(), logits(), **their)
    assert torch.equal(ours(context(), logits(), **mine), expected)
    assert not torch.equal(expected, logits().softmax(-1))


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composition_is_in_the_order_of_generate(model: Any, name: str) -> None:
    mine = {key: value for part in COMPOSED[name] for key, value in PARTS[part][0].items()}
    their = {key: value for part in COMPOSED[name] for key, value in PARTS[part][1].items()}
    assert torch.equal(ours(context(), logits(), **mine), theirs(model, context(), logits(), **their))


def vllm(ids: torch.Tensor, scores: torch.Tensor, prompt: int, **given: float) -> torch.Tensor:
    """vLLM's sampler by its definition, a row and a token at a time, in float64.

    ``Sampler.forward``: penalties (repetition over prompt and output, then frequency and presence over the output),
    temperature, min-p, then top-k and top-p over what is sorted upwards.
    """
    rows = []
    for row, logit in zip(ids.tolist(), scores.double().tolist(), strict=True):
        output = row[prompt:]
        z = list(logit)
        for token in set(row):
            penalty = given.get("repetition_penalty", 1.0)
            z[token] = z[token] / penalty if z[token] > 0 else z[token] * penalty
        for token in set(output):
            z[token] -= given.get("frequency_penalty", 0.0) * output.count(token)
            z[token] -= given.get("presence_penalty", 0.0)
        z = [value / given.get("temperature", 1.0) for value in z]
        p = torch.tensor(z, dtype=torch.float64).softmax(-1)
        kept = p >= given.get("min_p", 0.0) * p.max()
        if given.get("top_k"):
            left = torch.where(kept, p, 0.0)
            kept &= left >= left.sort(descending=True).values[int(given["top_k"]) - 1]
        if "top_p" in given:
            left = torch.where(kept, p, 0.0) / p[kept].sum()
            order = left.argsort()
            low = left[order].cumsum(0) <= 1 - given["top_p"]
            low[-1] = False
            kept[order[low]] = False
        rows.append(torch.where(kept, p, 0.0) / p[kept].sum())
    return torch.stack(rows)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.6, "top_p": 0.95},
        {"temperature": 1.4, "min_p": 0.2, "top_k": 9, "top_p": 0.7},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.9, "temperature": 0.8},
        {"repetition_penalty": 0.8, "presence_penalty": -0.5, "min_p": 0.05, "top_p": 0.9, "temperature": 1.3},
    ],
)
def test_the_order_of_vllm_is_its_own(given: dict[str, Any]) -> None:
    found = ours(context(), logits(), order="vllm", **given)
    assert torch.allclose(found.double(), vllm(context(), logits(), 4, **given), atol=1e-6)


def test_the_orders_differ_where_min_p_meets_top_p() -> None:
    scores = torch.tensor([[0.4, 0.2, 0.15, 0.1, 0.08, 0.07]]).log()
    ids = torch.zeros(1, 5, dtype=torch.long)
    given: dict[str, Any] = {"min_p": 0.3, "top_p": 0.79}
    # Of all, top-p keeps four (0.85), of which 0.15 is above 0.3 of 0.4 and 0.1 is not. Of the three that min-p leaves
    # (0.75), 0.4 and 0.2 are 0.8 already.
    kept = {order: int((ours(ids, scores, order=order, **given) > 0).sum()) for order in ("transformers", "vllm")}
    assert kept == {"transformers": 3, "vllm": 2}


@pytest.mark.parametrize(
    "mine",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram": 3},
        {"repetition_penalty": 1.1, "no_repeat_ngram": 2},
    ],
)
def test_greedy_search_with_penalties_is_generate_for_each_prompt_alone(
    model: Any, prompts: list[list[int]], mine: dict[str, Any]
) -> None:
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    their = {names.get(key, key): value for key, value in mine.items()}
    settings = SETTINGS(temperature=0, **mine)
    together = texts(model, generate(sample, model, *padded(prompts), 20, settings, 0))
    for ids, found in zip(prompts, together, strict=True):
        alone = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, **their)
        assert texts(model, alone[:, len(ids) :]) == [found]
    assert together != texts(model, generate(greedy, model, *padded(prompts), 20, greedy.Settings(), 0))


def test_a_composition_draws_what_generate_draws(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    settings = SETTINGS(temperature=0.6, top_p=0.95, repetition_penalty=1.1)
    mine = generate(sample, model, prompt, torch.ones_like(prompt), 20, settings, 7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = model.generate(
            prompt, max_new_tokens=20, do_sample=True, temperature=0.6, top_p=0.95, top_k=0, repetition_penalty=1.1
        )
    assert torch.equal(mine, theirs[:, prompt.shape[1] :])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"order": "vllm", "typical": 0.9}, "vllm has no typical"),
        ({"order": "vllm", "no_repeat_ngram": 3}, "vllm has no no_repeat_ngram"),
        ({"temperature": 0, "top_p": 0.9}, "0 is greedy search, where top_p does nothing"),
        ({"stop": [""]}, "an empty string"),
        ({"k": 5}, "Extra inputs"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SETTINGS(**settings)


def test_names_of_compositions() -> None:
    assert SETTINGS(temperature=0.6, top_p=0.95).label == "temperature 0.6, top p 0.95"
    assert SETTINGS().label == "the model's own distribution"
    assert SETTINGS(temperature=0).deterministic
