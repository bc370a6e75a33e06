"""Mixes of block types against their published sizes; test_llama_cpp_step compares each tensor with llama.cpp."""

from __future__ import annotations

import math

import pytest

from hemorrhage.compress.methods.weight_quantization.gguf_types import BITS, MIX_BITS
from hemorrhage.models.formats.gguf_mixes import MIXES, mix_types

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
}
LAYERS = {
    "attn_q": (4096, 4096),
    "attn_k": (1024, 4096),
    "attn_v": (1024, 4096),
    "attn_output": (4096, 4096),
    "ffn_gate": (14336, 4096),
    "ffn_up": (14336, 4096),
    "ffn_down": (4096, 14336),
}
SHAPES = {
    "token_embd.weight": (128256, 4096),
    **{f"blk.{block}.{name}.weight": shape for block in range(32) for name, shape in LAYERS.items()},
    "output.weight": (128256, 4096),
}

LLAMA_CPP = {
    "q2_k": 3.1593,
    "q3_k_s": 3.6429,
    "q3_k_m": 3.9960,
    "q3_k_l": 4.2979,
    "q4_k_s": 4.6672,
    "q4_k_m": 4.8944,
    "q5_k_s": 5.5704,
    "q5_k_m": 5.7036,
    "q6_k": 6.5633,
    "q8_0": 8.5008,
    "iq4_nl": 4.6818,
    "iq4_xs": 4.4597,
}
"""Bits per weight of Llama 3.1 8B's files as llama.cpp publishes them, header included."""


def bits(mix: str) -> float:
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    types = mix_types(mix, LLAMA_8B, SHAPES, is_weighted=False)
    assert set(types) == set(SHAPES)
    return sum(BITS[types[name]] * size for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("mix", LLAMA_CPP)
def test_files_have_the_published_size(mix: str) -> None:
    assert bits(mix) == pytest.approx(LLAMA_CPP[mix], abs=2e-3)


def test_bits_of_mixes_are_those_of_their_files() -> None:
    assert MIX_BITS.keys() == MIXES.keys()
    for mix in MIXES.keys() - {"mxfp4_moe"}:
        assert MIX_BITS[mix] == pytest.approx(bits(mix), abs=6e-3)


def test_an_importance_matrix_changes_what_comes_first() -> None:
    def first(mix: str, is_weighted: bool) -> str:
        return mix_types(mix, LLAMA_8B, SHAPES, is_weighted)["blk.0.ffn_down.weight"]

    assert [first("iq4_xs", weighted) for weighted in (False, True)] == ["q5_k", "iq4_xs"]
    assert [first("q4_0", weighted) for weighted in (False, True)] == ["q4_0", "q4_1"]


def test_norms_biases_and_routers_are_not_quantized() -> None:
    shapes = {"blk.0.attn_norm.weight": (64,), "blk.0.ffn_gate_inp.weight": (4, 64), "blk.0.attn_q.bias": (64,)}
    assert not mix_types("q4_k_m", LLAMA_8B, shapes, is_weighted=False)
