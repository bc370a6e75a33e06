"""Strings that end a text."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import generate, special_tokens
from hemorrhage.decode.prompts import Prompt, pad_left
from hemorrhage.decode.stops import Stops, stop_position

TEXTS = ("Once upon a time there was a little", "The dog", "Lily likes to play in the")


def padded(model: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = [Prompt(i, text, tokenizer(text)["input_ids"]) for i, text in enumerate(TEXTS)]
    return pad_left(prompts, special_tokens(model)["pad_token_id"])


@pytest.mark.parametrize("name", ["greedy", "beam", "fsd", "assisted"])
def test_a_stop_string_ends_each_text_by_itself(model: Any, tokenizer: Any, name: str) -> None:
    module = importlib.import_module(f"hemorrhage.decode.strategies.{name}")
    ids, mask = padded(model, tokenizer)
    free = generate(module, model, ids, mask, 16, module.Settings(), seed=0)
    text = tokenizer.decode(free[0], clean_up_tokenization_spaces=False)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = generate(module, model, ids, mask, 16, module.Settings(), seed=0, stops=Stops(tokenizer, [stop]))
    end = stop_position(tokenizer, stopped[0].tolist(), [stop])
    assert end is not None
    cut = stopped[0, :end].tolist()
    assert stop in tokenizer.decode(cut, clean_up_tokenization_spaces=False)
    assert stop not in tokenizer.decode(cut[:-1], clean_up_tokenization_spaces=False)
    if name != "beam":  # whose best finished sequence may be another
        assert cut == free[0, : len(cut)].tolist()
    assert stop_position(tokenizer, [5, 6, 7], ["no such thing"]) is None
