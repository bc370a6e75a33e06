"""The logits of an early exit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.early_exit import early_logits, keep_depth, refuse_all_blocks
from hemorrhage.models.refused import RefusedError
from tests.decode.literal import shortened
from tests.families import new_model


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_an_early_exit_is_the_model_without_its_last_blocks(model: Any, prompts: list[list[int]], layers: int) -> None:
    ids = torch.tensor([prompts[2]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[layers]
        found = early_logits(model, states)
        torch.testing.assert_close(found, shortened(model, layers)(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_early_exit_does_what_the_head_does() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    ids = torch.arange(6)[None]
    for kind, config in (
        (Gemma2ForCausalLM, Gemma2Config(**shape, final_logit_softcapping=0.5)),
        (GraniteForCausalLM, GraniteConfig(**shape, logits_scaling=4.0)),
    ):
        torch.manual_seed(0)
        whole: Any = kind(config)
        whole.eval()
        with torch.no_grad():
            states = whole(ids, output_hidden_states=True).hidden_states[2]
            torch.testing.assert_close(early_logits(whole, states), shortened(whole, 2)(ids).logits)


def test_a_family_that_always_runs_all_blocks_can_draft_with_none() -> None:
    for family in ("llama", "gemma2", "mixtral"):
        refuse_all_blocks(new_model(family).float())
    for family in ("gpt2", "mamba", "bloom"):
        model = new_model(family).float()
        with pytest.raises(RefusedError, match=f"{type(model).__name__} always runs all of them"):
            refuse_all_blocks(model)
        assert model.config.num_hidden_layers == 4


def test_the_configuration_is_brought_back_where_drafting_fails() -> None:
    model = new_model("gpt2")

    def fail() -> None:
        with keep_depth(model):
            model.config.num_hidden_layers = 1
            raise IndexError

    with pytest.raises(IndexError):
        fail()
    assert model.config.n_layer == 4
