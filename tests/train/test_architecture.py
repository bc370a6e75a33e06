"""The model of a recipe, and what is said of one that can't be made."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hemorrhage.runtime.step import InputError
from hemorrhage.train import architecture
from hemorrhage.train.objectives import forward
from tests.conftest import ROOT
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


NAMED = re.findall(
    r"`(\w+)`", (ROOT / "docs/nursery.md").read_text().partition("with each of these:")[2].partition(". ")[0]
)

SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 16}

OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 3},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 6, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "minimax": {"layer_types": 2 * ["full_attention"], "num_local_experts": 1, "num_experts_per_tok": 1},
}
"""Keys of a family's own that make it small."""


def made(model_type: str, **more: Any) -> Any:
    """Make a small model of a type: 3 heads of 16, whose sizes are no powers of two."""
    default = AutoConfig.for_model(model_type)
    known = {key: value for key, value in SMALL.items() if hasattr(default, key) and model_type != "gpt2"}
    if hasattr(default, "num_key_value_heads") and model_type != "gpt2":
        known["num_key_value_heads"] = 3
    written = {"model_type": model_type, **known, **OWN.get(model_type, {}), **more}
    return architecture.create(architecture.configure(written, 288, 32), 0)


@pytest.mark.parametrize("model_type", NAMED)
def test_an_architecture_that_the_page_names_takes_a_step(model_type: str) -> None:
    model = made(model_type)
    ids = torch.arange(64).view(4, 16) % 23
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        logits, _balance = forward(model, ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


def test_the_page_names_many_architectures() -> None:
    assert len(NAMED) == len(set(NAMED)) == 19


def test_minimax_has_deepnorms_additions() -> None:
    """x becomes Norm(α x + f(x)) (arXiv 2203.00555); the norm of a block's last addition is the next block's first."""
    model = made("minimax", full_attn_alpha_factor=1.7, mlp_alpha_factor=1.3)
    block = model.model.layers[0]
    seen: dict[str, Any] = {}
    parts = {"attention": block.self_attn, "mlp": block.mlp, "first": block.input_layernorm, "all": block}
    for name, part in parts.items():
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        model(torch.arange(8)[None])
        of_attention, of_mlp, whole = (first(seen[name]) for name in ("attention", "mlp", "all"))
        middle = block.post_attention_layernorm(1.7 * seen["first"] + of_attention)
        assert torch.allclose(whole, 1.3 * middle + of_mlp, atol=1e-6)


def first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def test_an_output_embedding_of_its_own_is_not_a_weight_of_the_blocks() -> None:
    tied, untied = (
        architecture.create(architecture.configure({**LLAMA, "tie_word_embeddings": tie}, 288, 32), 0)
        for tie in (True, False)
    )
    assert architecture.weights_outside_embedding(tied) == architecture.weights_outside_embedding(untied)
    assert architecture.operations(tied, 10) == architecture.operations(untied, 10)
