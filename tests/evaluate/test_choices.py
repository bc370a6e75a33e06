"""Likelihoods of choices against a full pass over each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import DynamicCache

from hemorrhage.evaluate.choices import answers, choice_rows, log_likelihoods
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation import eviction


def test_choices_against_one_full_pass_each(model: Any, tokenizer: Any) -> None:
    prompt = "Once upon a time there was a little"
    choices = [" girl", " boy who", " x", " happy old dog"]
    rows = choice_rows(0, prompt, choices, tokenizer)
    scores = log_likelihoods(model, rows, pad=0)[0]
    start = len(tokenizer(prompt).input_ids)
    literal = []
    for choice in choices:
        ids = torch.tensor([tokenizer(prompt + choice).input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        literal.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
    assert [a - scores[0] for a in scores] == pytest.approx([b - literal[0] for b in literal], abs=1e-4)


def test_an_evicting_model_has_read_the_prompt_but_for_its_last_token(tiny: Path, tokenizer: Any) -> None:
    model: Any = load(tiny, "float64")
    eviction.evict(model, eviction.Eviction("key_norm", 0.5))
    rows = choice_rows(0, "Once upon a time there was a little", [" girl", " boy who", " happy old dog"], tokenizer)
    rows += choice_rows(1, "The dog and the", [" cat", " x"], tokenizer)
    scores = log_likelihoods(model.float(), rows, pad=0)
    for item, tokens, endings in rows:
        prompt = len(tokens) - len(endings[0])
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.tensor([tokens[:prompt]]), past_key_values=cache)
            log_p = model(torch.tensor([tokens[prompt:]]), past_key_values=cache).logits[0].log_softmax(-1)
        for ending in endings:
            likelihood = sum(float(log_p[step, token]) for step, token in enumerate(ending))
            assert min(abs(likelihood - each) for each in scores[item]) < 1e-4


def test_what_all_choices_begin_with_is_read_with_the_prompt(tokenizer: Any) -> None:
    (row,) = choice_rows(7, "Once upon a", [" time a", " time s"], tokenizer)
    item, read, endings = row
    assert item == 7
    assert [len(ending) for ending in endings] == [1, 1]
    assert tokenizer.decode(read[1:]).endswith("time")


def test_a_choice_must_not_change_the_prompts_tokens(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="merges with the last prompt token"):
        choice_rows(0, "Once upon a ti", ["me", "de"], tokenizer)


def by_likelihood(model: Any, tokenizer: Any, prompt: str, words: list[str]) -> tuple[str, str]:
    """The likeliest and the unlikeliest of ``words`` behind ``prompt``, by a pass over each."""
    start = len(tokenizer(prompt).input_ids)
    found = {}
    for word in words:
        ids = torch.tensor([tokenizer(prompt + word).input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        found[word] = sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    return max(found, key=found.__getitem__), min(found, key=found.__getitem__)


def test_answers_of_a_task(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    likely, unlikely = by_likelihood(model, tokenizer, "Once upon a", [" the", " time", " x", " girl"])
    items = [
        {"prompt": "Once upon a", "choices": [likely, unlikely], "answer": 0},
        {"prompt": "Once upon a", "choices": [unlikely, likely], "answer": 1},
        {"prompt": "Once upon a", "choices": [unlikely, likely], "answer": 0},
    ]
    table = pd.DataFrame(items).assign(item=range(3), group=[0, 1, 1])
    table.to_parquet(tmp_path / "items.parquet")
    found = answers(model, tokenizer, tmp_path)
    assert list(found.correct) == [True, True, False]
    assert list(found.group) == [0, 1, 1]
    assert (found.margin > 0).equals(found.correct)
    pd.testing.assert_frame_equal(answers(model, tokenizer, tmp_path, tokens_per_batch=1), found, atol=1e-4)
