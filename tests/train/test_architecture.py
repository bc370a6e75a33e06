"""The model of a recipe, and what is said of one that can't be made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.runtime.step import InputError
from hemorrhage.train import architecture
from tests.train.made import spec

LLAMA = spec()["architecture"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({**LLAMA, "model_type": "lama"}, "architecture.model_type: transformers has no 'lama'"),
        ({**LLAMA, "hiden_size": 3}, "architecture.hiden_size: no key of a config of the type llama"),
        ({**LLAMA, "num_attention_heads": 3}, "architecture: The hidden size .* attention heads"),
        ({"model_type": "t5"}, "Unrecognized configuration class"),
    ],
)
def test_what_can_not_be_made_is_one_line(written: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        architecture.create(architecture.configure(written, 288, 32), 0)
    assert "\n" not in str(raised.value)


def test_ids_vocabulary_and_context_are_the_recipes() -> None:
    config = architecture.configure(LLAMA, 288, 32)
    assert (config.vocab_size, config.max_position_embeddings) == (288, 32)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 3)
    assert architecture.configure({**LLAMA, "max_position_embeddings": 64}, 288, 32).max_position_embeddings == 64


def test_a_seed_makes_the_weights() -> None:
    config = architecture.configure(LLAMA, 288, 32)
    first, again, other = (architecture.create(config, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_output_embedding_of_its_own_is_not_a_weight_of_the_blocks() -> None:
    tied, untied = (
        architecture.create(architecture.configure({**LLAMA, "tie_word_embeddings": tie}, 288, 32), 0)
        for tie in (True, False)
    )
    assert architecture.weights_outside_embedding(tied) == architecture.weights_outside_embedding(untied)
    assert architecture.operations(tied, 10) == architecture.operations(untied, 10)
