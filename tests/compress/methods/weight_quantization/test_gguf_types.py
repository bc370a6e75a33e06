"""Tests of gguf_types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gguf_types
from hemorrhage.compress.solvers import kquants
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.imatrix import Seen, write
from tests.layers import layer_of


def test_a_type_falls_back_where_its_blocks_divide_no_row() -> None:
    assert gguf_types.type_of("q4_k", 512) == "q4_k"
    assert gguf_types.type_of("q4_k", 576) == "q5_0"
    assert gguf_types.type_of("q2_k", 96) == "q4_0"
    assert gguf_types.type_of("q6_k", 100) is None
    assert gguf_types.type_of("q8_0", 64) == "q8_0"


def test_a_name_that_is_a_mix_alone_is_one_and_others_ask_for_it() -> None:
    assert gguf_types.Settings(type="q4_k_m").mix
    assert not gguf_types.Settings(type="q2_k").mix
    curves = {gguf_types.Settings.model_validate({"type": kind, "mix": True}).identity for kind in ("q2_k", "q4_k_m")}
    assert len(curves) == 1
    # Types of as many bits are points of different curves.
    places = {
        (one.identity, one.severity)
        for one in (gguf_types.Settings.model_validate({"type": kind}) for kind in gguf_types.BITS)
    }
    assert len(places) == len(gguf_types.BITS)
    mixes = [gguf_types.Settings.model_validate({"type": kind, "mix": True}) for kind in gguf_types.MIX_BITS]
    assert len({(one.identity, one.severity) for one in mixes}) == len(mixes)
    for content, why in (
        ({"type": "q4_k_m", "mix": False}, "q4_k_m is a mix of types, and no type"),
        ({"type": "q4_k", "mix": True}, r"llama\.cpp calls no file q4_k; mixes are q8_0, "),
        ({"type": "q4_k_m", "embeddings": True}, "a mix has them quantized"),
    ):
        with pytest.raises(ValueError, match=why):
            gguf_types.Settings.model_validate(content)


def test_an_importance_matrix_is_a_file_of_llama_cpp(tmp_path: Path) -> None:
    squares = {"blk.0.attn_q.weight": Seen(torch.ones(1, 64), torch.ones(1))}
    write(tmp_path / "a.dat", squares, 1, ["prose"])
    assert gguf_types.Settings.refusal(tmp_path / "a.dat") is None
    (tmp_path / "c.dat").write_bytes(b"weights, and no importances")
    assert "c.dat ends before its last record does, or is no importance" in str(
        gguf_types.Settings.refusal(tmp_path / "c.dat")
    )
    assert "b.gguf is missing" in str(gguf_types.Settings.refusal(tmp_path / "b.gguf"))
    assert "is no importance matrix of llama.cpp" in str(gguf_types.Settings.refusal(tmp_path / "a.txt"))
    settings = gguf_types.Settings(type="q4_k", imatrix="models/chat.dat")
    assert settings.label == "Q4_K, importances of chat.dat"
    assert settings.statistics == ()
    with pytest.raises(ValueError, match="importances are those of a file or, with importance, of the calibration"):
        gguf_types.Settings(type="q4_k", imatrix="a.dat", importance=True)


def test_an_importance_matrix_of_another_model_is_named_before_work(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}

    def check(names: list[str], width: int, suffix: str = ".dat") -> str | None:
        file = tmp_path / f"m{suffix}"
        file.unlink(missing_ok=True)
        write(file, {name: Seen(torch.ones(1, width), torch.ones(1)) for name in names}, 1, ["prose"])
        return gguf_types.Settings(type="q4_0", imatrix=str(file)).check(config)

    whole = [f"blk.{block}.{name}.weight" for block in (0, 1) for name in ("attn_q", "attn_output")]
    for suffix in (".dat", ".gguf"):
        assert check([*whole, "output.weight"], 64, suffix) is None
        assert str(check(whole, 96, suffix)).endswith("of another model: its hidden size is 96, here it is 64")
    assert str(check(whole[:2], 64)).endswith("of another model: it has 1 blocks, this one 2")
    assert str(check(["output.weight"], 64)).endswith("of another model: it has no tensor of a block")


def test_a_mix_has_embeddings_and_head_and_says_what_fell_back(tiny: Path) -> None:
    model = load(tiny)
    alteration = gguf_types.alter(model, gguf_types.Settings(type="q4_k_m"), Context())
    # Of five blocks the third and the last have values of Q6_K, for which rows of 64 fall back to Q8_0.
    assert alteration.entries["types"] == {"q5_0": 28, "q8_0": 2, "plain": 5}
    assert alteration.entries["fell_back"] == 35
    assert vars(model.get_input_embeddings())["gguf_entry"].ggml_type == "q8_0"


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
