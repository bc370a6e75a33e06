"""Strategies that run in one batch."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from hemorrhage.decode import batching
from hemorrhage.decode.generation import Prompts, generate, read, special_tokens, until_end
from hemorrhage.decode.prompts import Prompt, pad_left

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"k": 7},
    "top_p": {"p": 0.8},
    "min_p": {"p_base": 0.1},
    "typical": {"tau": 0.6},
    "eta": {"epsilon": 0.01},
    "epsilon": {"epsilon": 0.01},
    "mirostat": {"tau": 3.0},
    "fsd_d": {"alpha": 0.6},
    "sample": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
}


TEXTS = ("Once upon a time there was a little", "The dog", "Lily likes to play in the")


def padded(model: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = [Prompt(i, text, tokenizer(text)["input_ids"]) for i, text in enumerate(TEXTS)]
    return pad_left(prompts, special_tokens(model)["pad_token_id"])


@pytest.mark.parametrize("ahead", [True, False])
def test_strategies_that_run_together_write_what_each_writes_alone(model: Any, tokenizer: Any, ahead: bool) -> None:
    ids, mask = padded(model, tokenizer)
    modules = {name: importlib.import_module(f"hemorrhage.decode.strategies.{name}") for name in SETTINGS}
    chosen = {name: module.Settings(**SETTINGS[name]) for name, module in modules.items()}
    parameters = [module.parameters(model, chosen[name], Prompts(mask, 12)) for name, module in modules.items()]
    assert all(batching.is_batchable(found) for found in parameters)
    reading = read(model, ids, mask) if ahead else None
    found = batching.continuations(model, ids, mask, 12, parameters, [5] * len(parameters), reading=reading)
    end = special_tokens(model)["eos_token_id"]
    assert isinstance(end, int)
    for (name, module), texts in zip(modules.items(), found, strict=True):
        alone = generate(module, model, ids, mask, 12, chosen[name], seed=5, reading=reading)
        assert [until_end(text, {end}) for text in texts.tolist()] == [
            until_end(text, {end}) for text in alone.tolist()
        ]


@pytest.mark.parametrize("name", ["beam", "diverse_beam", "contrastive_search", "dola", "fsd", "assisted"])
def test_searches_run_alone(model: Any, name: str) -> None:
    module = importlib.import_module(f"hemorrhage.decode.strategies.{name}")
    assert not batching.is_batchable(module.parameters(model, module.Settings(), Prompts(torch.ones(1, 4), 4)))
