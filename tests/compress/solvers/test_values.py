"""Values of heads found by trying: whatever the layout of fused layers, and not where something else acts on them."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.compress.solvers.basis import find_stream
from hemorrhage.compress.solvers.values import Values, find_values
from hemorrhage.models.experts import unfuse
from tests.families import new_model

HEADS, WIDTH = 4, 20


def values_of(name: str) -> list[Values | None]:
    model = new_model(name)
    unfuse(model)
    return find_values(model, find_stream(model))


@pytest.mark.parametrize(
    ("name", "maker", "rows"),
    [
        ("opt", "self_attn.v_proj", [[WIDTH * head + at for at in range(WIDTH)] for head in range(HEADS)]),
        # Fused: queries, keys, values; of each head; of a single head of keys and values.
        ("gpt2", "attn.c_attn", [[160 + WIDTH * head + at for at in range(WIDTH)] for head in range(HEADS)]),
        (
            "gpt_neox",
            "attention.query_key_value",
            [[60 * head + 40 + at for at in range(WIDTH)] for head in range(HEADS)],
        ),
        ("phi3", "self_attn.qkv_proj", [[100 + at for at in range(WIDTH)]]),
        # Latent attention: for each head 16 rows of keys, 24 of values.
        ("deepseek_v3", "self_attn.kv_b_proj", [[40 * head + 16 + at for at in range(24)] for head in range(HEADS)]),
    ],
)
def test_rows_of_the_values(name: str, maker: str, rows: list[list[int]]) -> None:
    for values in values_of(name):
        assert values is not None
        assert values.maker == maker
        assert values.rows.tolist() == rows
        # Heads of queries that read a head of values, in order.
        assert values.columns.flatten().tolist() == list(range(HEADS * values.width))
        assert values.columns.shape == (len(rows), HEADS // len(rows), values.width)


def test_blocks_without_attention_have_none() -> None:
    assert [values is not None for values in values_of("bamba")] == [False, True, False, True]


@pytest.mark.parametrize("name", ["olmo", "qwen3_next", "gpt_oss", "diffllama"])
def test_clamps_gates_sinks_and_norms_of_heads_do_not_turn(name: str) -> None:
    assert not any(values_of(name))


def test_equal_weights_hide_nothing() -> None:
    """Pruned or constant layers: which output is read shows by what is given, not by what the weights make."""
    model = new_model("llama")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "v_proj" in name:
                value.zero_()
    assert all(values is not None for values in find_values(model, find_stream(model)))
