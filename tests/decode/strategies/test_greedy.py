"""Greedy search: the most probable token at every step."""

from __future__ import annotations

from typing import Any

import torch

from hemorrhage.decode.generation import generate
from hemorrhage.decode.strategies import greedy
from tests.decode.literal import logits_of, padded, texts


def test_every_token_is_the_most_probable_behind_those_before(model: Any, prompts: list[list[int]]) -> None:
    generated = texts(model, generate(greedy, model, *padded(prompts), 16, greedy.Settings(), 0))
    assert [len(row) for row in generated] == [16] * len(prompts)
    for prompt, row in zip(prompts, generated, strict=True):
        for place, token in enumerate(row):
            assert token == int(logits_of(model, prompt + row[:place]).argmax())


def test_it_draws_nothing(model: Any, prompts: list[list[int]], drawn_from: list[torch.Tensor]) -> None:
    assert greedy.Settings().deterministic
    generate(greedy, model, *padded(prompts), 4, greedy.Settings(), 0)
    assert not drawn_from
