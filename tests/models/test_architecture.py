"""What config.json says of a model: its class, its entries under one name for all families, its shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hemorrhage.models.architecture import architecture, skeleton, text_entries
from tests.layers import layer_of

GPT2 = GPT2Config(n_embd=80, n_layer=2, n_head=4, vocab_size=50)


def test_the_class_is_that_of_the_language_model() -> None:
    assert architecture(LlamaConfig()) is LlamaForCausalLM
    assert architecture(GPT2) is GPT2LMHeadModel


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match="transformers has no language model of the type unheard_of"):
        architecture(type("Odd", (BertConfig,), {"model_type": "unheard_of"})())


def test_entries_have_one_name_for_all_families(tmp_path: Path) -> None:
    GPT2.save_pretrained(tmp_path)
    entries = text_entries(tmp_path)
    assert (entries["hidden_size"], entries["num_hidden_layers"], entries["num_attention_heads"]) == (80, 2, 4)
    assert entries["model_type"] == "gpt2"


def test_a_skeleton_has_shapes_and_no_numbers() -> None:
    model = skeleton(GPT2)
    assert all(value.device == torch.device("meta") for value in model.parameters())
    assert layer_of(model, "transformer.h.0.attn.c_attn").weight.shape == (80, 240)
