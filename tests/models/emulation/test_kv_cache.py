"""Keys and values that are rounded, against grids written out and attention query by query."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation import cache_grids, kv_cache
from hemorrhage.models.emulation.activations import exact
from hemorrhage.models.emulation.kv_cache import ChannelRounding, FixedRounding, TokenRounding
from tests import tiny_mamba


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(group: list[float], bits: int) -> list[float]:
    """A group on its asymmetric grid, number by number; the scale is kept in float16."""
    low, high, half = min(*group, 0.0), max(*group, 0.0), 2 ** (bits - 1)
    step = (high - low) / (2**bits - 1)
    zero = max(-half, min(half - 1, round(-half - low / step)))
    stored = float(torch.tensor(step).half())
    return [(max(-half, min(half - 1, round(x / stored + zero))) - zero) * stored for x in group]


def between(group: list[float], bits: int) -> list[float]:
    """A group on KIVI's grid, number by number; the smallest and the scale are kept in float16."""
    least = float(torch.tensor(min(group)).half())
    step = float(torch.tensor((max(group) - min(group)) / (2**bits - 1)).half())
    return [least + step * max(0, min(2**bits - 1, round((x - least) / step))) for x in group]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_group_lies_on_its_own_grid(bits: int) -> None:
    groups = random(3, 4, 8)
    found = cache_grids.round_groups(groups, bits)
    for group, values in zip(groups.flatten(0, 1).tolist(), found.flatten(0, 1).tolist(), strict=True):
        assert values == pytest.approx(by_hand(group, bits), abs=1e-5)
    assert cache_grids.round_groups(torch.zeros(2, 4), bits).tolist() == [[0.0] * 4] * 2


def test_per_token_it_is_what_compressed_tensors_computes() -> None:
    rounding, x = TokenRounding(4, 8), random(2, 3, 16)
    scheme = {key: value for key, value in kv_cache.quantization_args(rounding).items() if key != "scale_dtype"}
    args = QuantizationArgs(**scheme)
    groups = x.unflatten(-1, (-1, 8))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    theirs = fake_quantize(x.flatten(0, 1), scale.flatten(0, 1).half().float(), zero.flatten(0, 1), args)
    # Half a step of a grid may fall to either side.
    assert ((rounding.keys(x).flatten(0, 1) - theirs).abs() < 1e-5).float().mean() > 0.97


def test_channels_share_a_grid_over_complete_groups_of_tokens() -> None:
    rounding, keys = ChannelRounding(2, 4, 8), random(1, 2, 10, 6)
    found = rounding.keys(keys)
    assert torch.equal(found[..., 8:, :], keys[..., 8:, :]), "an incomplete group is exact"
    for head in range(2):
        for channel in range(6):
            for start in (0, 4):
                group = keys[0, head, start : start + 4, channel].tolist()
                assert found[0, head, start : start + 4, channel].tolist() == pytest.approx(between(group, 2), abs=1e-5)
    values = 5 + random(1, 2, 10, 8)
    for group, rounded in zip(
        values.reshape(-1, 4).tolist(), rounding.values(values).reshape(-1, 4).tolist(), strict=True
    ):
        assert rounded == pytest.approx(between(group, 2), abs=1e-5)


def test_attention_is_what_each_query_sees_one_after_the_other() -> None:
    rounding = ChannelRounding(2, 4, 4)
    query, key, value = random(1, 4, 5, 8), random(1, 2, 13, 8, seed=1), random(1, 2, 13, 8, seed=2)
    module = SimpleNamespace(kv_cache_rounding=rounding)
    found, _ = kv_cache.attend(module, query, key, value, None, scaling=0.3)
    for row in range(5):
        position = 8 + row
        for head in range(4):
            k, v = key[0, head // 2], value[0, head // 2]
            k_round, v_round = rounding.keys(key)[0, head // 2], rounding.values(value)[0, head // 2]
            keys = [k_round[t] if t < position // 4 * 4 else k[t] for t in range(position + 1)]
            values = [v_round[t] if t < position - 4 else v[t] for t in range(position + 1)]
            weights = torch.stack([query[0, head, row] @ each * 0.3 for each in keys]).softmax(0)
            expected = sum(weight * each for weight, each in zip(weights, values, strict=True))
            torch.testing.assert_close(found[0, row, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_a_model_rounds_until_it_is_to_be_exact(tiny: Path, kind: str) -> None:
    model: Any = load(tiny)
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        if kind == "token":
            kv_cache.round_per_token(model, TokenRounding(2, 8))
        else:
            kv_cache.round_per_channel(model, ChannelRounding(2, 4, 8))
        assert kv_cache.has_rounding(model)
        assert not torch.allclose(model(tokens).logits, expected, atol=1e-2)
        torch.testing.assert_close(model(tokens, use_cache=False).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
        with exact():
            torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="keys and values are quantized or evicted already"):
        kv_cache.round_per_token(model, TokenRounding(2, 8))


def test_the_configuration_installs_what_it_describes(tiny: Path) -> None:
    rounding, tokens = TokenRounding(3, 8), torch.arange(3, 43)[None]
    one, other = load(tiny), load(tiny)
    kv_cache.round_per_token(one, rounding)
    kv_cache.install(other, kv_cache.quantization_args(rounding), {})
    with torch.no_grad():
        assert torch.equal(one(tokens).logits, other(tokens).logits)
    with pytest.raises(ValueError, match=r"keys and values quantized as .* can't be emulated"):
        kv_cache.install(load(tiny), {**kv_cache.quantization_args(rounding), "symmetric": True}, {})


def test_a_model_without_keys_has_no_attention_layers() -> None:
    with pytest.raises(ValueError, match="no block of MambaForCausalLM hands keys and values to a cache"):
        kv_cache.attention_layers(tiny_mamba.new_model())
    config = GPTNeoXConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=8
    )
    with pytest.raises(ValueError, match="GPTNeoXAttention takes its cache as layer_past, which can't be rounded"):
        kv_cache.attention_layers(GPTNeoXForCausalLM(config))


def test_in_fp8_it_is_what_compressed_tensors_computes_with_fixed_scales() -> None:
    rounding, x = FixedRounding((0.002,), (0.5,)), random(2, 3, 16)
    args = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False)
    for found, scale in ((rounding.keys(x), 0.002), (rounding.values(x), 0.5)):
        assert torch.equal(found, fake_quantize(x, torch.tensor([scale]), torch.zeros(1), args))
    assert rounding.keys(x.bfloat16()).dtype == torch.bfloat16


def test_scales_of_all_layers_are_in_the_configuration_and_come_back(tiny: Path) -> None:
    model: Any = load(tiny)
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        before = model(tokens).logits
        scales = [[0.001 * (index + 1), 0.002] for index in range(len(model.model.layers))]
        kv_cache.round_fixed(model, scales)
        rounded = model(tokens).logits
        with exact():
            assert torch.equal(model(tokens).logits, before)
        assert not torch.allclose(rounded, before, atol=1e-3)
        assert kv_cache.has_rounding(model)
        again: Any = load(tiny)
        again.config.hemorrhage = model.config.hemorrhage
        kv_cache.install(again, None, {})
        assert torch.equal(again(tokens).logits, rounded)
    with pytest.raises(ValueError, match="keys and values are quantized or evicted already"):
        kv_cache.round_fixed(model, scales)
    with pytest.raises(ValueError, match="shorter"):
        kv_cache.round_fixed(load(tiny), scales[:1])


def test_scales_that_layers_keep_are_tensors_of_the_checkpoint(tiny: Path) -> None:
    model, again = load(tiny), load(tiny)
    tokens = torch.arange(3, 43)[None]
    layers = len(kv_cache.attention_layers(model))
    heads = model.config.num_key_value_heads
    pairs = [(0.01 * (1 + random(heads, 1, 1).abs()), 0.01 * (1 + random(heads, 1, 1, seed=1).abs()))] * layers
    kv_cache.round_to_scales(model, pairs)
    stored = {name: value for name, value in model.state_dict().items() if name.endswith(("k_scale", "v_scale"))}
    assert len(stored) == 2 * layers
    scheme = kv_cache.fixed_args(is_per_head=True)
    assert model.config.quantization_config["kv_cache_scheme"] == scheme
    kv_cache.install(again, scheme, stored)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)
    narrow: Any = {**scheme, "num_bits": 4}
    with pytest.raises(ValueError, match="can't be emulated"):
        kv_cache.install(load(tiny), narrow, stored)


def test_the_largest_magnitudes_are_those_that_went_in(tiny: Path) -> None:
    model: Any = load(tiny)
    with torch.no_grad(), kv_cache.largest_magnitudes(model) as seen:
        caches = [model(torch.arange(start, start + 20)[None], use_cache=True).past_key_values for start in (3, 40)]
    for index, hook in enumerate(seen):
        keys = torch.stack([cache.layers[index].keys.abs().amax((0, 2, 3)) for cache in caches]).amax(0)
        values = torch.stack([cache.layers[index].values.abs().amax((0, 2, 3)) for cache in caches]).amax(0)
        assert hook.key is not None
        assert hook.value is not None
        assert torch.equal(hook.key, keys)
        assert torch.equal(hook.value, values)
    assert not kv_cache.has_rounding(model)
