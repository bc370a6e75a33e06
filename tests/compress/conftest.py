"""Texts and a model of odd widths for the tests of compression."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hemorrhage.models.checkpoint import load
from tests.layers import generate


@pytest.fixture(scope="module")
def text(tiny: Path) -> Tensor:
    """Texts of the model itself: int64 [4, 64]."""
    model = load(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return generate(
            model, torch.ones((4, 1), dtype=torch.long), do_sample=True, max_new_tokens=63, min_new_tokens=63
        )


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 of two blocks, whose widths no power of two divides."""
    config = LlamaConfig(
        hidden_size=42, intermediate_size=57, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=14, vocab_size=509, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("odd") / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder
