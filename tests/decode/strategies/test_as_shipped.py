"""As shipped: the text of ``generate`` with the model's own file, at the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hemorrhage.decode.generation import Prompts, end_tokens, generate, until_end
from hemorrhage.decode.prompts import Prompt, pad_left
from hemorrhage.decode.stops import Stops
from hemorrhage.decode.strategies import as_shipped, greedy
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.refused import RefusedError
from tests.families import build

FILES: dict[str, dict[str, Any]] = {
    "llama": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7]},
    "qwen3": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1},
    "gpt2": {"do_sample": True, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "suppress_tokens": [5, 6]},
    "olmo2": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.8},
    "gemma2": {"do_sample": True, "top_k": 64, "top_p": 0.95, "stop_strings": ["e"]},
}
"""Family -> what its generation_config.json says."""


def shipped_with(folder: Path, family: str, said: dict[str, Any]) -> Path:
    """A family's folder whose generation_config.json says this, or that has none."""
    build(folder, family)
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if said:
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        file.write_text(json.dumps({**ids, **said}))
    return folder


def prompts_of(folder: Path) -> list[list[int]]:
    tokenizer: Any = load_tokenizer(folder)
    return [tokenizer(text)["input_ids"] for text in ("The red cats", "Once upon a time there was", "A")]


def theirs(model: Any, ids: list[int], tokenizer: Any, new_tokens: int, seed: int) -> list[int]:
    """What a user of transformers gets for one prompt."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(torch.tensor([ids]), max_new_tokens=new_tokens, tokenizer=tokenizer)
    row: list[int] = found[0, len(ids) :].tolist()
    return row


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "float32"), ("qwen3", "bfloat16"), ("gpt2", "bfloat16"), ("olmo2", "bfloat16"), ("gemma2", "float32")],
)
def test_a_text_is_that_of_generate(tmp_path: Path, family: str, dtype: str) -> None:
    folder = shipped_with(tmp_path / family, family, FILES[family])
    model = load(folder, dtype=dtype)
    tokenizer: Any = load_tokenizer(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    for ids in prompts_of(folder):
        prompt = torch.tensor([ids])
        mine = generate(
            as_shipped, model, prompt, torch.ones_like(prompt), 13, as_shipped.Settings(), 5, stops=Stops(tokenizer)
        )
        assert mine[0].tolist() == theirs(plain, ids, tokenizer, 13, 5)
    said = as_shipped.describe(model, as_shipped.Settings())["generation_config"]
    assert {key: said[key] for key in FILES[family]} == FILES[family]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_texts_of_a_padded_batch_are_those_of_generate(tmp_path: Path, family: str) -> None:
    """With a repetition penalty, under which transformers takes padding for text, prompts are decoded one by one."""
    folder = shipped_with(tmp_path / family, family, {**FILES[family], "do_sample": False})
    model = load(folder)
    prompts = prompts_of(folder)
    ids, mask = pad_left([Prompt(i, "", tokens) for i, tokens in enumerate(prompts)], padding=0)
    together = generate(as_shipped, model, ids, mask, 13, as_shipped.Settings(), 5)
    ends = end_tokens(model)
    for row, tokens in zip(together.tolist(), prompts, strict=True):
        alone = theirs(model, tokens, None, 13, 5)
        assert until_end(row, ends) == until_end(alone, ends)


def test_a_model_without_the_file_is_greedy_and_says_so(tmp_path: Path) -> None:
    folder = shipped_with(tmp_path / "llama", "llama", {})
    model = load(folder)
    prompt = torch.tensor([prompts_of(folder)[0]])
    mine = generate(as_shipped, model, prompt, torch.ones_like(prompt), 9, as_shipped.Settings(), 5)
    assert torch.equal(mine, generate(greedy, model, prompt, torch.ones_like(prompt), 9, greedy.Settings(), 5))
    assert "greedy, since no generation_config.json" in as_shipped.describe(model, as_shipped.Settings())["label"]
    assert not as_shipped.parameters(model, as_shipped.Settings(), Prompts(torch.ones_like(prompt), 9)).samples


@pytest.mark.parametrize(
    ("key", "value"),
    [("penalty_alpha", 0.6), ("num_beam_groups", 2), ("prompt_lookup_num_tokens", 3), ("num_return_sequences", 2)],
)
def test_what_the_bench_cannot_run_is_named(model: Any, key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.generation_config, key, value)
    with pytest.raises(RefusedError, match=f"generation_config.json: {key}: {value}: "):
        as_shipped.parameters(model, as_shipped.Settings(), Prompts(torch.ones(1, 3, dtype=torch.long), 9))
