"""Contrastive decoding against a slow, literal one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.strategies import contrastive_decoding, greedy
from tests.decode.literal import logits_of, padded, shortened, texts


def contrastive_reference(
    model: Any, amateur: Any, ids: list[int], new_tokens: int, alpha: float, beta: float
) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        expert, weaker = logits_of(model, ids), logits_of(amateur, ids)
        p = expert.softmax(-1).tolist()
        scores = {
            token: (1 + beta) * float(expert[token]) - beta * float(weaker[token])
            for token in range(len(p))
            if p[token] >= alpha * max(p)
        }
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


@pytest.mark.parametrize(("layers", "alpha", "beta"), [(2, 0.1, 0.5), (1, 0.3, 2.0), (4, 0.01, 1.0)])
def test_contrastive_decoding_is_the_literal_one(
    model: Any, prompts: list[list[int]], layers: int, alpha: float, beta: float
) -> None:
    settings = contrastive_decoding.Settings(alpha=alpha, beta=beta, layers=layers, amateur=None)
    amateur = shortened(model, layers)
    expected = [contrastive_reference(model, amateur, ids, 14, alpha, beta) for ids in prompts]
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, settings, 0)) == expected


def test_the_amateur_may_be_another_checkpoint(model: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    amateur = shortened(model, 2)
    amateur.save_pretrained(tmp_path / "amateur")
    settings = contrastive_decoding.Settings(alpha=0.1, beta=1.0, layers=None, amateur=str(tmp_path / "amateur"))
    expected = [contrastive_reference(model, amateur, ids, 14, 0.1, 1.0) for ids in prompts]
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, settings, 0)) == expected
    within = contrastive_decoding.Settings(alpha=0.1, beta=1.0, layers=2, amateur=None)
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, within, 0)) == expected
    assert settings.label == "contrastive decoding β 1, amateur amateur"


def test_an_amateur_of_another_vocabulary_is_refused(model: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    config = copy.deepcopy(model.config)
    config.vocab_size = 100
    type(model)(config).save_pretrained(tmp_path / "other")
    settings = contrastive_decoding.Settings(alpha=0.1, beta=0.5, layers=None, amateur=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="its vocabulary has 100 tokens, the model's 512"):
        generate(contrastive_decoding, model, *padded(prompts), 4, settings, 0)


def test_without_contrast_it_is_greedy_search(model: Any, prompts: list[list[int]]) -> None:
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    settings = contrastive_decoding.Settings(alpha=0.1, beta=0, layers=None, amateur=None)
    assert torch.equal(generate(contrastive_decoding, model, *padded(prompts), 24, settings, 0), greedily)


def test_any_user_of_transformers_can_pass_it_to_generate(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(
        prompt, max_new_tokens=8, custom_generate=contrastive_decoding.contrastive_decoding, beta=0.7, layers=2
    )
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == contrastive_reference(
            model, shortened(model, 2), prompts[2], 8, 0.1, 0.7
        )
