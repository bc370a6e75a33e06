"""DoLa against a slow, literal one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.strategies import dola
from tests.decode.literal import logits_of, padded, shortened, texts


def dola_reference(
    model: Any, ids: list[int], new_tokens: int, layers: tuple[int, ...], alpha: float, penalty: float
) -> list[int]:
    ids, start = list(ids), len(ids)
    early = {layer: shortened(model, layer) for layer in layers}
    for _ in range(new_tokens):
        q = logits_of(model, ids).softmax(-1).tolist()
        others = {layer: logits_of(early[layer], ids).softmax(-1).tolist() for layer in layers}

        def divergence(layer: int, q: list[float] = q, others: dict[int, list[float]] = others) -> float:
            r = others[layer]
            mean = [(a + b) / 2 for a, b in zip(q, r, strict=True)]
            kl = [sum(a * math.log(a / m) for a, m in zip(side, mean, strict=True) if a) for side in (q, r)]
            return sum(kl) / 2

        chosen = max(layers, key=divergence)
        scores = {}
        for token in range(len(q)):
            if q[token] >= alpha * max(q):
                score = math.log(q[token]) - math.log(others[chosen][token])
                if token in ids:
                    score = score * penalty if score < 0 else score / penalty
                scores[token] = score
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


@pytest.mark.parametrize(
    ("layers", "alpha", "penalty"), [((1, 2, 3, 4), 0.1, 1.2), ((2,), 0.05, 1.0), ((1, 4), 0.3, 1.5)]
)
def test_dola_is_the_literal_one(
    model: Any, prompts: list[list[int]], layers: tuple[int, ...], alpha: float, penalty: float
) -> None:
    settings = dola.Settings(layers=layers, alpha=alpha, repetition_penalty=penalty)
    expected = [dola_reference(model, ids, 9, layers, alpha, penalty) for ids in prompts]
    assert texts(model, generate(dola, model, *padded(prompts), 9, settings, 0)) == expected


def test_the_layers_of_dola_by_name(model: Any) -> None:
    assert dola.candidates(model, "low") == (2,)
    assert dola.candidates(model, "high") == (2, 4)
    deep = copy.copy(model)
    deep.config = copy.deepcopy(model.config)
    deep.config.num_hidden_layers, deep.config.tie_word_embeddings = 32, False
    # What the paper names for a model of 32 layers.
    assert dola.candidates(deep, "low") == tuple(range(0, 16, 2))
    assert dola.candidates(deep, "high") == tuple(range(16, 32, 2))


def test_jensen_shannon_is_zero_of_equals_and_ln_2_of_strangers() -> None:
    p = torch.tensor([[0.5, 0.5, 1e-30, 1e-30], [0.25, 0.25, 0.25, 0.25]]).log()
    q = torch.tensor([[1e-30, 1e-30, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]]).log()
    torch.testing.assert_close(dola.jensen_shannon(p, q), torch.tensor([math.log(2), 0.0]))


def test_any_user_of_transformers_can_pass_it_to_generate(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(
        prompt, max_new_tokens=8, custom_generate=dola.dola, layers=(1, 3), repetition_penalty=1.2
    )
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == dola_reference(model, prompts[2], 8, (1, 3), 0.1, 1.2)
