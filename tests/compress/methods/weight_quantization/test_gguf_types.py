"""Tests of gguf_types."""

from __future__ import annotations

from pathlib import Path

import torch

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gguf_types
from hemorrhage.compress.solvers import kquants
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from tests.layers import layer_of


def test_a_type_falls_back_where_its_blocks_divide_no_row() -> None:
    assert gguf_types.type_of("q4_k", 512) == "q4_k"
    assert gguf_types.type_of("q4_k", 576) == "q5_0"
    assert gguf_types.type_of("q2_k", 96) == "q4_0"
    assert gguf_types.type_of("q6_k", 100) is None
    assert gguf_types.type_of("q8_0", 64) == "q8_0"


def test_bits_are_those_of_the_blocks() -> None:
    from hemorrhage.models.formats.gguf_file import block_size

    for kind, bits in gguf_types.BITS.items():
        width, size = block_size(kind)
        assert bits == 8 * size / width


def test_layers_hold_the_blocks_of_their_weights_and_the_manifest_counts_them(tiny: Path) -> None:
    model, base = load(tiny), load(tiny)
    alteration = gguf_types.alter(model, gguf_types.Settings(type="q4_k"), Context())
    name = "model.layers.0.self_attn.q_proj"
    # 64 inputs are no super-block of 256.
    expected = kquants.quantize(layer_of(base, name).weight.detach(), "q5_0")
    assert torch.equal(layer_of(model, name).tensors["blocks"], expected)
    types = alteration.entries["types"]
    # Rows of 64 fall back, the down projections' rows of 172 stay plain.
    assert types == {"q5_0": 6 * len(blocks(model)), "plain": len(blocks(model))}
    assert alteration.entries["fell_back"] == 7 * len(blocks(model))
