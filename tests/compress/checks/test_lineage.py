"""Which tensors of a published model are the base's, and what explains those that are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hemorrhage.compress.checks import lineage
from hemorrhage.runtime.step import InputError


def model(seed: int = 0, rows: int = 90, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=80,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=24,
    )
    made: Any = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in made.named_parameters():
        if "norm" in name:
            value.data += 0.2 * torch.randn(value.shape, generator=generator)
    return made.to(dtype).eval()


def test_the_same_model_in_another_type_is_the_same() -> None:
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        assert lineage.compare(model(dtype=dtype), model()).verdict == "same"


def test_a_quantized_embedding_is_still_the_bases_and_that_of_another_model_is_not() -> None:
    rounded = model()
    embedding = rounded.model.embed_tokens.weight
    step = embedding.float().abs().max() / 7
    embedding.data = ((embedding.float() / step).round() * step).bfloat16()
    assert lineage.compare(rounded, model()).verdict == "same"
    other = lineage.compare(model(seed=1), model())
    assert other.verdict == "other"
    assert "model.embed_tokens.weight" in other.differing


def test_scales_between_a_norm_and_its_readers_are_recognized_and_a_norm_alone_is_not() -> None:
    scaled, lone = model(), model()
    generator = torch.Generator().manual_seed(3)
    for block in scaled.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            (mlp.up_proj, (mlp.down_proj,)),
            (attention.v_proj, ()),
        ):
            if not readers:
                continue
            factors = (0.7 * torch.randn(len(norm.weight), generator=generator)).exp()
            norm.weight.data = (norm.weight.float() / factors.view(-1, *[1] * (norm.weight.dim() - 1))).bfloat16()
            for reader in readers:
                reader.weight.data = (reader.weight.float() * factors).bfloat16()
    assert lineage.compare(scaled, model()).verdict == "scaled"
    lone.model.layers[0].input_layernorm.weight.data *= 1.1
    compared = lineage.compare(lone, model())
    assert (compared.verdict, compared.differing) == ("other", ("model.layers.0.input_layernorm.weight",))


def test_without_a_common_name_the_base_is_unknown() -> None:
    other: Any = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=80, n_layer=2, n_head=5, n_positions=64)).eval()
    compared = lineage.compare(other, model())
    assert (compared.verdict, compared.compared) == ("unknown", 0)


def test_a_text_model_is_compared_with_the_text_tower_of_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = {
        name.replace("model.", "model.language_model."): value for name, value in lineage.left_alone(model()).items()
    }
    text, wrapper = model(), model()
    real = lineage.left_alone
    monkeypatch.setattr(lineage, "left_alone", lambda each: tower if each is wrapper else real(each))
    assert lineage.compare(text, wrapper).verdict == "same"
    assert lineage.compare(text, wrapper).compared == len(tower)


def test_a_smaller_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="its vocabulary has 80 rows and the base's 90"):
        lineage.cut_padding(model(rows=80), model())


def test_other_tokens_are_counted() -> None:
    ours = {0: "<s>", 1: "a", 2: "b", 3: "c"}
    assert lineage.compare_tokens({**ours, 4: "pad"}, ours) == ""
    assert lineage.compare_tokens(None, ours) == ""
    said = lineage.compare_tokens({0: "<s>", 1: "a", 2: "x", 3: "y"}, ours)
    assert said.startswith("Its tokenizer has other tokens than the base's in 2 places, the first of them 2: 'x'")


def test_settings_that_compute_otherwise_are_named() -> None:
    ours = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-5)
    rounded = LlamaConfig(rope_parameters={"rope_theta": 10000}, rms_norm_eps=9.99999974e-06, use_cache=False)
    assert lineage.compare_settings(rounded, ours) == ""
    other = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-6)
    said = lineage.compare_settings(other, ours)
    assert said.startswith(
        "Its configuration computes otherwise than the base's: rms_norm_eps 1e-06 in place of 1e-05, rope_par"
    )
