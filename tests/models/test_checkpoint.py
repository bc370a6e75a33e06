"""Loading a checkpoint folder, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hemorrhage.models.checkpoint import load, load_tokenizer, size


def test_load_is_a_frozen_plain_model_of_the_asked_dtype(tiny: Path) -> None:
    model = load(tiny)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load(tiny, "bfloat16").dtype == torch.bfloat16
    stock = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokens = torch.arange(1, 60)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits.cpu(), stock(tokens).logits)


def test_tokenizer_is_the_one_of_tokenizer_json(tiny: Path) -> None:
    text = "Once upon a time, there was a little girl."
    assert load_tokenizer(tiny)(text).input_ids == AutoTokenizer.from_pretrained(tiny)(text).input_ids


def test_the_size_is_that_in_float32(base: Path) -> None:
    assert size(base) == 4 * sum(value.numel() for value in load(base).parameters())
