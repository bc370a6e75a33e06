"""Evicted tokens: what later queries read, in one pass and token by token, with padding and without; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hemorrhage.models.blocks import decoder
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation import eviction, eviction_scores, kv_cache
from hemorrhage.models.emulation.activations import exact
from hemorrhage.models.emulation.eviction import Eviction
from hemorrhage.models.refused import RefusedError
from tests import families
from tests.layers import logits_of

SCORES = [
    Eviction("streaming_llm", 0.5, sinks=4),
    Eviction("snapkv", 0.5, window=4, kernel=3),
    Eviction("key_norm", 0.5),
    Eviction("expected_attention", 0.5, sinks=4, future=32),
]

scores = pytest.mark.parametrize("chosen", SCORES, ids=lambda chosen: chosen.score)


@pytest.fixture(scope="module")
def text() -> Tensor:
    return torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))


def evicting(tiny: Path, chosen: Eviction) -> Any:
    """In float64, where another order of sums moves no score past another."""
    model = load(tiny, "float64")
    eviction.evict(model, chosen)
    return model


def logits(model: Any, tokens: Tensor, **keywords: Any) -> Tensor:
    with torch.inference_mode():
        return logits_of(model, tokens, **keywords)


@scores
def test_the_second_half_of_a_text_reads_what_is_left_of_the_first(tiny: Path, text: Tensor, chosen: Eviction) -> None:
    model, expected = evicting(tiny, chosen), logits(load(tiny, "float64"), text, use_cache=False)
    found = logits(model, text, use_cache=False)
    assert torch.equal(found[:, :20], expected[:, :20])
    assert (found[:, 20:] - expected[:, 20:]).abs().amax((0, 2)).min() > 1e-3
    # A pass that is given no cache scores a text, whether it would return one or not.
    assert torch.equal(logits(model, text), found)
    with exact():
        assert torch.equal(logits(model, text, use_cache=False), expected)


@scores
def test_decoding_after_a_prompt_is_scoring_with_that_prompt(tiny: Path, text: Tensor, chosen: Eviction) -> None:
    model = evicting(tiny, chosen)
    with eviction.prompts(model, [13, 13]):
        expected = logits(model, text, use_cache=False)
    cache: Any = DynamicCache(config=model.config)
    parts = [logits(model, part, past_key_values=cache) for part in text.split([13, 1, 1, 3, *[1] * 22], 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-9)
    assert cache.layers[0].keys.isinf().any(-1).sum(-1).tolist() == [[6] * cache.layers[0].keys.shape[1]] * 2
    with eviction.prompts(model, [13, 20]):
        rows = logits(model, text, use_cache=False)
    torch.testing.assert_close(rows[0], expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(rows[1], logits(model, text, use_cache=False)[1], rtol=0, atol=1e-9)


@scores
def test_padding_in_front_changes_nothing(tiny: Path, text: Tensor, chosen: Eviction) -> None:
    model = evicting(tiny, chosen)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), text], dim=1)
    mask = (torch.arange(45) >= 5).long().expand(2, -1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, padded, attention_mask=mask, position_ids=positions, use_cache=False)[:, 5:]
    torch.testing.assert_close(found, logits(model, text, use_cache=False), rtol=0, atol=1e-9)
    generated = model.generate(text, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(text))
    again = model.generate(padded, max_new_tokens=6, do_sample=False, attention_mask=mask)
    assert torch.equal(generated[:, 40:], again[:, 45:])


@scores
def test_a_ratio_of_nothing_is_the_base_bit_for_bit(tiny: Path, text: Tensor, chosen: Eviction) -> None:
    base: Any = load(tiny)
    model: Any = load(tiny)
    eviction.evict(model, Eviction(**{**vars(chosen), "ratio": 0.0}))
    assert torch.equal(logits(model, text, use_cache=False), logits(base, text, use_cache=False))
    for beams in (1, 3):
        texts: list[Tensor] = [
            each.generate(text[:, :12], max_new_tokens=8, num_beams=beams, do_sample=False) for each in (model, base)
        ]
        assert torch.equal(*texts)


def test_attention_of_an_evicting_layer_is_that_of_a_shorter_cache(tiny: Path, text: Tensor) -> None:
    """Keys and values that are gone are cut out of the cache by hand, head by head."""
    model, base = evicting(tiny, SCORES[0]), load(tiny, "float64")
    found = logits(model, text, use_cache=False)
    whole: Any = DynamicCache(config=base.config)
    logits(base, text[:, :20], past_key_values=whole)
    # StreamingLLM evicts the same tokens of every head: 4 to 13 of 20.
    left = [*range(4), *range(14, 20)]
    for layer in whole.layers:
        layer.keys, layer.values = layer.keys[:, :, left], layer.values[:, :, left]
    positions = torch.arange(20, 40)[None]
    mask = torch.cat([torch.ones(20, 10), torch.ones(20, 20).tril()], dim=1).bool()[None, None].expand(2, -1, -1, -1)
    expected = logits(base, text[:, 20:], past_key_values=whole, position_ids=positions, attention_mask=mask)
    torch.testing.assert_close(found[:, 20:], expected, rtol=0, atol=1e-9)


def test_queries_are_turned_back_and_to_the_mean_of_later_positions(tiny: Path) -> None:
    model: Any = load(tiny)
    layer, rotary = kv_cache.attention_layers(model)[0], decoder(model).rotary_emb
    queries = torch.randn(1, 2, 7, layer.head_dim, generator=torch.Generator().manual_seed(0))
    cosines, sines = rotary(queries, torch.arange(7)[None])
    turned, _ = apply_rotary_pos_emb(queries, queries, cosines, sines)
    back = eviction._turned_back(layer, turned[0], cosines[0], sines[0])
    torch.testing.assert_close(back, queries[0], rtol=1e-4, atol=1e-5)
    state = eviction.LayerState(Eviction("expected_attention", 0.5, future=5), eviction.Reading(), rotary)
    later, _ = apply_rotary_pos_emb(
        *[queries[:, :, :1].expand(-1, -1, 5, -1)] * 2, *rotary(queries, torch.arange(7, 12)[None])
    )
    mean = queries[0, :, 0] @ state._mean_rotation(layer, 7, queries[0]).T
    torch.testing.assert_close(mean, later[0].mean(1), rtol=1e-4, atol=1e-5)


def test_the_configuration_installs_what_it_describes(tiny: Path, text: Tensor) -> None:
    one, other = load(tiny), load(tiny)
    eviction.evict(one, SCORES[1])
    assert one.config.hemorrhage["kv_cache"] == {"evicted_by": "snapkv", "ratio": 0.5, "window": 4, "kernel": 3}
    assert eviction.evicts(one)
    assert kv_cache.has_rounding(one)
    assert not eviction.evicts(other)
    other.config.hemorrhage = one.config.hemorrhage
    kv_cache.install(other, None, {})
    eviction.install(other)
    assert torch.equal(logits(one, text, use_cache=False), logits(other, text, use_cache=False))
    with pytest.raises(ValueError, match="keys and values are quantized or evicted already"):
        kv_cache.round_per_token(one, kv_cache.TokenRounding(4, 8))
    with pytest.raises(ValueError, match="keys and values are quantized or evicted already"):
        eviction.evict(one, SCORES[0])


def sliding(name: str) -> Iterator[bool]:
    """Which layers of a family's model have a sliding window."""
    yield from (kind == "sliding_attention" for kind in families.config_of(name).layer_types)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_oss"])
def test_layers_with_a_sliding_window_are_left_alone(family: str, text: Tensor) -> None:
    model: Any = families.new_model(family).float()
    eviction.evict(model, SCORES[2])
    cache: Any = DynamicCache(config=model.config)
    logits(model, text, past_key_values=cache)
    marked = [bool(layer.keys.isinf().any()) for layer in cache.layers]
    assert marked == [not each for each in sliding(family)]
    assert len(eviction.evicting_layers(model)) == marked.count(True)


@pytest.mark.parametrize(
    ("family", "chosen", "reason"),
    [
        ("mistral", SCORES[2], "all attention layers of MistralForCausalLM have a sliding window"),
        ("deepseek_v3", SCORES[2], "DeepseekV3ForCausalLM caches one latent of a token for all of its heads"),
        ("bloom", SCORES[2], "BloomAttention takes its cache as layer_past"),
        ("mpt", SCORES[2], "MptForCausalLM computes attention in its own way"),
        ("gpt2", SCORES[3], "GPT2LMHeadModel has no rotary embedding"),
        ("glm", SCORES[3], "needs a rotary embedding of whole heads; GlmForCausalLM turns a part of each"),
    ],
)
def test_what_can_not_be_is_refused(family: str, chosen: Eviction, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        eviction.evict(families.new_model(family), chosen)


def test_scores_are_those_of_the_tokens_that_were_read(tiny: Path, text: Tensor) -> None:
    """The first layer's keys of a prompt, and the tokens that its norms evict."""
    model: Any = evicting(tiny, SCORES[2])
    base: Any = DynamicCache(config=model.config)
    marked: Any = DynamicCache(config=model.config)
    logits(load(tiny, "float64"), text[:, :11], past_key_values=base)
    logits(model, text[:, :11], past_key_values=marked)
    for row in range(2):
        expected = eviction_scores.lowest(-base.layers[0].keys[row].norm(dim=-1), 0.5)
        assert torch.equal(marked.layers[0].keys[row].isinf().all(-1), expected)
