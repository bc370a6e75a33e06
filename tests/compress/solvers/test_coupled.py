"""Rows and columns that belong together, found by trying: heads and channels whatever the layers' layout is."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.compress.solvers.coupled import Coupled, Parts, find_parts
from hemorrhage.models.blocks import blocks
from hemorrhage.models.experts import unfuse
from tests.families import new_model

HEADS, WIDTH = 4, 20


def parts_of(name: str) -> Parts:
    model = new_model(name)
    unfuse(model)
    first, *others = find_parts(model)
    assert all(first is other for other in others)
    return first


@pytest.mark.parametrize(
    ("name", "rows", "reader"),
    [
        ("qwen2", {"mlp.gate_proj": [[0]], "mlp.up_proj": [[0]]}, "mlp.down_proj"),
        ("phi3", {"mlp.gate_up_proj": [[0, 112]]}, "mlp.down_proj"),
        ("opt", {"fc1": [[0]]}, "fc2"),
        ("gpt2", {"mlp.c_fc": [[0]]}, "mlp.c_proj"),
        ("olmo2", {"mlp.gate_proj": [[0]], "mlp.up_proj": [[0]]}, "mlp.down_proj"),
    ],
)
def test_channels(name: str, rows: dict[str, list[list[int]]], reader: str) -> None:
    channels = parts_of(name).channels
    assert channels is not None
    assert channels.reader == reader
    size = len(channels)
    expected = {layer: torch.tensor(first) + torch.arange(size)[:, None] for layer, first in rows.items()}
    assert channels.rows.keys() == expected.keys()
    assert all(torch.equal(channels.rows[layer], places) for layer, places in expected.items())
    assert torch.equal(channels.columns[:, 0], torch.arange(size))


def test_heads_of_fused_and_of_single_layers() -> None:
    fused, single = parts_of("gpt_neox").heads, parts_of("biogpt").heads
    assert fused is not None
    assert single is not None
    assert fused.rows["attention.query_key_value"].tolist() == torch.arange(240).view(HEADS, 60).tolist()
    each = torch.arange(HEADS * WIDTH).view(HEADS, WIDTH)
    assert all(torch.equal(single.rows[f"self_attn.{name}_proj"], each) for name in "qkv")
    assert torch.equal(single.columns, each)


def test_queries_that_share_keys_go_together(tiny_parts: Parts) -> None:
    heads = tiny_parts.heads
    assert heads is not None
    assert {name: tuple(rows.shape) for name, rows in heads.rows.items()} == {
        "self_attn.q_proj": (4, 16),
        "self_attn.k_proj": (4, 8),
        "self_attn.v_proj": (4, 8),
    }
    assert heads.columns.shape == (4, 16)


@pytest.fixture
def tiny_parts(tiny: object) -> Parts:
    from pathlib import Path

    from hemorrhage.models.checkpoint import load

    assert isinstance(tiny, Path)
    return find_parts(load(tiny))[0]


def test_a_single_head_of_keys_and_values_is_one_group() -> None:
    heads = parts_of("llama").heads
    assert heads is not None
    assert len(heads) == 1


@pytest.mark.parametrize("name", ["opt", "gpt2", "qwen3_5_text"])
def test_heads_whose_number_is_fixed_or_that_are_gated_stay(name: str) -> None:
    model = new_model(name)
    unfuse(model)
    assert all(part.heads is None and part.channels is not None for part in find_parts(model))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "mamba"])
def test_experts_and_states_are_no_channels(name: str) -> None:
    model = new_model(name)
    unfuse(model)
    assert find_parts(model)[-1].channels is None


def test_groups_are_taken_out_with_their_biases() -> None:
    block = torch.nn.ModuleDict({"up": torch.nn.Linear(3, 4), "down": torch.nn.Linear(4, 3)})
    up, down = (block.get_parameter(f"{name}.weight").clone() for name in ("up", "down"))
    coupled = Coupled({"up": torch.tensor([[0], [2], [1], [3]])}, "down", torch.arange(4)[:, None])
    assert coupled.weights(block) == 3 + 3
    coupled.keep(block, torch.tensor([1, 3]))
    assert torch.equal(block.get_parameter("up.weight"), up[[2, 3]])
    assert torch.equal(block.get_parameter("down.weight"), down[:, [1, 3]])
    assert len(block.get_parameter("up.bias")) == 2


def test_dead_rows_are_placed_like_the_others() -> None:
    model = new_model("opt")
    with torch.no_grad():
        for block in blocks(model):
            block.get_parameter("fc1.bias")[7] = -100
    channels = find_parts(model)[0].channels
    assert channels is not None
    assert channels.rows["fc1"][7].tolist() == [7]
