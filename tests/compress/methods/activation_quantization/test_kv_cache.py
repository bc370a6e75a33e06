"""Rounded keys and values against their definitions, compressed-tensors, and decoding token by token."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.activation_quantization import activations, kv_cache
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.models import folder
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import exact
from hemorrhage.models.emulation.cache_grids import round_groups
from hemorrhage.models.emulation.kv_cache import ChannelRounding, TokenRounding, attend, quantization_args
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests import families
from tests.calibration import calibrated
from tests.divergence import kl
from tests.layers import logits_of
from tests.whole import whole

TOKEN = {"bits": 3, "group_size": 4}
CHANNEL = {"bits": 3, "group_size": 4, "keys": "channel", "residual": 8}


def altered(tiny: Path, settings: dict[str, Any], dtype: str = "float64") -> Any:
    """In float64, where another order of sums moves no value over the edge of a rounding step."""
    model = load(tiny, dtype)
    kv_cache.alter(model, kv_cache.Settings.model_validate(settings), Context())
    return model


def logits(model: Any, tokens: Tensor, **keywords: Any) -> Tensor:
    with torch.inference_mode():
        return logits_of(model, tokens, **keywords)


def made(base: Path, out: Path, calibration: Path | None = None, **settings: Any) -> Path:
    spec = {"sweep": "s", "method": "kv_cache", "settings": settings, "seed": 0}
    compress(out, "v", base, None, calibration, [], spec)
    assert "failure" not in read_manifest(out), read_manifest(out)["failure"]
    return out


def literal(x: list[float], bits: int) -> list[float]:
    """One group, number by number."""
    low, high = min(0.0, *x), max(0.0, *x)
    if low == high:
        return x
    step = (high - low) / (2**bits - 1)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zero = round(min(max(least - low / step, least), most))
    step = torch.tensor(step).half().item()
    return [(min(max(round(value / step + zero), least), most) - zero) * step for value in x]


def literal_range(x: list[float], bits: int) -> list[float]:
    """One group as KIVI's paper writes it: z = min X, s = (max X - min X) / (2^B - 1), both in 16 bits."""
    z, s = (torch.tensor(value).half().item() for value in (min(x), (max(x) - min(x)) / (2**bits - 1)))
    return [min(max(round((value - z) / s), 0), 2**bits - 1) * s + z for value in x]


def states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_its_definition(bits: int) -> None:
    x = states(2, 3, 4, 8)
    x[0, 0, 0, :4] = x[0, 0, 0, :4].abs() + 1
    x[0, 0, 1] = 0
    ours = TokenRounding(bits, 4).keys(x)
    for index in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        row = x[tuple(index)].tolist()
        torch.testing.assert_close(ours[tuple(index)], torch.tensor(literal(row[:4], bits) + literal(row[4:], bits)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_is_bit_for_bit_that_of_compressed_tensors(bits: int) -> None:
    x = states(2, 3, 5, 8, seed=bits)
    x[1, 1, 1] = 0
    rounding = TokenRounding(bits, 4)
    args = QuantizationArgs(**quantization_args(rounding))
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    assert torch.equal(rounding.keys(x), fake_quantize(x, scale, zero, args))


def test_rounding_leaves_its_input_alone_and_outliers_finite() -> None:
    x = states(4, 8)
    before = x.clone()
    round_groups(x, 2)
    assert torch.equal(x, before)
    assert round_groups(1e6 * x, 2).isfinite().all()


def offset_states(*shape: int, seed: int = 0) -> Tensor:
    """Return states whose channels lie around numbers of their own, as those of keys do (KIVI's figure 2)."""
    return states(*shape, seed=seed) / 4 + 6 * states(shape[-1], seed=seed + 100)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_grid_of_kivi_reaches_from_the_smallest_number_to_the_largest(bits: int) -> None:
    keys = offset_states(2, 2, 16, 8)
    rounding = ChannelRounding(bits, 8, 8)
    ours, plain = rounding.keys(keys), TokenRounding(bits, 8).keys(keys.transpose(-1, -2)).transpose(-1, -2)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(8)).tolist():
        column = keys[index[0], index[1], :, index[2]].tolist()
        expected = literal_range(column[:8], bits) + literal_range(column[8:], bits)
        torch.testing.assert_close(ours[index[0], index[1], :, index[2]], torch.tensor(expected))
    # A number is within half a step of its group's, which is what a grid with zero on it can't do.
    groups = keys.unflatten(-2, (2, 8))
    step = (groups.amax(-2) - groups.amin(-2)) / (2**bits - 1)
    assert ((ours - keys).unflatten(-2, (2, 8)).abs() <= 0.5 * step[..., None, :] + 0.01).all()
    assert (ours - keys).square().mean() < 0.1 * (plain - keys).square().mean()
    alike = torch.full((1, 1, 8, 8), 3.25)
    assert torch.equal(rounding.keys(alike), alike)
    assert torch.equal(rounding.values(alike), alike)
    assert rounding.keys(1e6 * keys).isfinite().all()


def literal_kivi(query: Tensor, key: Tensor, value: Tensor, rounding: ChannelRounding) -> Tensor:
    """One head decoded in the order of the authors' code: attend, then round what is full."""
    old_keys: list[Tensor] = []
    new_keys: list[Tensor] = []
    old_values: list[Tensor] = []
    new_values: list[Tensor] = []
    outputs = []
    for q, k, v in zip(query, key, value, strict=True):
        new_keys.append(k)
        new_values.append(v)
        scores = torch.stack([q @ k for k in old_keys + new_keys])
        weights = torch.softmax(scores / 2, dim=0)
        outputs.append(sum(w * v for w, v in zip(weights, old_values + new_values, strict=True)))
        if len(new_keys) == rounding.residual:
            full = torch.stack(new_keys)
            for start in range(0, rounding.residual, rounding.group_size):
                part = full[start : start + rounding.group_size]
                channels = [literal_range(column, rounding.bits) for column in part.T.tolist()]
                old_keys += list(torch.tensor(channels).T)
            new_keys = []
        if len(new_values) > rounding.residual:
            oldest = new_values.pop(0).tolist()
            size = rounding.group_size
            groups = [literal_range(oldest[at : at + size], rounding.bits) for at in range(0, len(oldest), size)]
            old_values.append(torch.tensor(groups).flatten())
    return torch.stack(outputs)


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_is_the_authors_decoding(bits: int) -> None:
    rounding = ChannelRounding(bits, 4, 8)
    layer: Any = torch.nn.Module()
    layer.kv_cache_rounding = rounding
    query, key, value = states(1, 4, 30, 8), offset_states(1, 2, 30, 8, seed=1), states(1, 2, 30, 8, seed=2)
    ours, _ = attend(layer, query, key, value, None, scaling=0.5)
    for head in range(4):
        expected = literal_kivi(query[0, head], key[0, head // 2], value[0, head // 2], rounding)
        torch.testing.assert_close(ours[0, :, head], expected, rtol=1e-4, atol=1e-5)
    # The newest query alone, as in generation.
    last, _ = attend(layer, query[:, :, -1:], key, value, None, scaling=0.5)
    torch.testing.assert_close(last[:, 0], ours[:, -1])


@pytest.mark.parametrize("settings", [TOKEN, CHANNEL], ids=["token", "channel"])
def test_decoding_with_a_cache_is_the_forward_pass_over_the_text(
    tiny: Path, text: Tensor, settings: dict[str, Any]
) -> None:
    model = altered(tiny, settings)
    whole = logits(model, text, use_cache=False)
    assert (whole - logits(load(tiny, "float64"), text)).abs().max() > 0.01
    torch.testing.assert_close(logits(model, text), whole, rtol=0, atol=1e-4)
    cache = DynamicCache(config=model.config)
    parts = [logits(model, part, past_key_values=cache) for part in text.split([20, 1, 1, 1, 9, *[1] * 32], 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [TOKEN, CHANNEL], ids=["token", "channel"])
def test_generation_with_and_without_a_cache(tiny: Path, text: Tensor, settings: dict[str, Any]) -> None:
    model = altered(tiny, settings)
    arguments = {
        "max_new_tokens": 24,
        "min_new_tokens": 24,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    prompt = text[:2, :12]
    cached = model.generate(prompt, **arguments)
    whole = logits(model, cached.sequences, use_cache=False)[:, 11:-1]
    torch.testing.assert_close(torch.stack(cached.logits, dim=1).double(), whole, rtol=0, atol=1e-4)
    assert torch.equal(model.generate(prompt, use_cache=False, **arguments).sequences, cached.sequences)
    beams = model.generate(prompt, max_new_tokens=8, num_beams=3, do_sample=False)
    plain = model.generate(prompt, max_new_tokens=8, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, plain)


def test_padding_in_front_changes_nothing_per_token(tiny: Path, text: Tensor) -> None:
    model = altered(tiny, TOKEN)
    short = text[:1, :20]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1)
    mask = (torch.arange(25) >= 5).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 5:]
    torch.testing.assert_close(found, logits(model, short), rtol=0, atol=1e-4)


def test_fewer_bits_hurt_more_and_kivi_less(tiny: Path, text: Tensor) -> None:
    reference = logits(load(tiny), text).log_softmax(-1)

    def divergence(**settings: Any) -> float:
        return kl(reference, logits(altered(tiny, settings, "float32"), text))

    token = {bits: divergence(bits=bits, group_size=8) for bits in (8, 4, 3, 2)}
    assert -1e-6 < token[8] < 0.005
    assert token[8] < token[4] < token[3] < token[2]
    channel = {bits: divergence(bits=bits, group_size=8, keys="channel", residual=16) for bits in (8, 4, 2)}
    assert channel[8] < channel[4] < channel[2]
    assert 4 * channel[2] < token[2]
    assert divergence(bits=2, group_size=8, keys="channel", residual=64) == pytest.approx(0, abs=1e-6)


def test_transformers_computes_the_same_from_disk(tiny: Path, text: Tensor, tmp_path: Path) -> None:
    out = made(tiny, tmp_path / "out", bits=4, group_size=8)
    before, after = load_file(tiny / "model.safetensors"), dict(Weights(out, tiny).items())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"] == quantization_args(TokenRounding(4, 8))
    ours = logits(load(out, base=tiny), text)
    theirs = logits(AutoModelForCausalLM.from_pretrained(whole(out, tiny), dtype=torch.float32).eval(), text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * ours.abs().max().item())
    torch.testing.assert_close(ours, logits(altered(tiny, {"bits": 4, "group_size": 8}, "float32"), text))


def test_kivi_reads_back_from_disk(tiny: Path, text: Tensor, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bits": 2, "group_size": 8, "keys": "channel", "residual": 16}
    out = made(tiny, tmp_path / "out", **settings)
    config = json.loads((out / "config.json").read_text())
    assert config["hemorrhage"]["kv_cache"] == {"bits": 2, "group_size": 8, "residual": 16}
    assert "quantization_config" not in config
    assert torch.equal(logits(load(out, base=tiny), text), logits(altered(tiny, settings, "float32"), text))


@pytest.mark.parametrize("weights", ["packed", "bytes"])
def test_weights_and_cache_together(tiny: Path, text: Tensor, tmp_path: Path, weights: str) -> None:
    model = load(tiny)
    if weights == "packed":
        rtn.alter(model, rtn.Settings(bits=4, group_size=4), Context())
    else:
        activations.alter(model, activations.Settings(), Context())
    kv_cache.alter(model, kv_cache.Settings(bits=4, group_size=8), Context())
    folder.save(model, torch.float32, tiny, tmp_path)
    ours = logits(load(tmp_path), text)
    torch.testing.assert_close(ours, logits(model, text), rtol=0, atol=1e-5 * ours.abs().max().item())
    theirs = logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(), text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * ours.abs().max().item())


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("scale", ["tensor", "head", "one"])
def test_transformers_reads_fixed_scales_from_disk(
    tiny: Path, text: Tensor, calibration: Path, tmp_path: Path, scale: str
) -> None:
    out = made(tiny, tmp_path / "out", calibration, bits=8, format="fp8", scale=scale)
    stored, heads = Weights(out, tiny), load(tiny).config.num_key_value_heads
    shape = (heads, 1, 1) if scale == "head" else (1,)
    assert tuple(stored.tensor("model.layers.4.self_attn.k_scale").shape) == shape
    assert read_manifest(out)["changed"] == 0
    assert read_manifest(out)["parameters"] == sum(each.numel() for each in load(tiny).parameters())
    scheme = json.loads((out / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert scheme["strategy"] == ("attn_head" if scale == "head" else "tensor")
    ours = logits(load(out, base=tiny), text)
    assert not torch.allclose(ours, logits(load(tiny), text), atol=1e-3)
    export(out, tmp_path / "packed", "packed", tiny, tmp_path)
    for written in (whole(out, tiny), tmp_path / "packed"):
        theirs = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
        assert torch.equal(ours, logits(theirs, text))


def test_fixed_scales_are_the_largest_magnitudes_in_the_calibration(tiny: Path, calibration: Path) -> None:
    model, tokens = load(tiny), Statistics(calibration).tokens().long()
    context = Context(statistics=Statistics(calibration))
    settings = kv_cache.Settings(bits=8, format="fp8", scale="head")
    with torch.no_grad():
        caches = [load(tiny)(window[None], use_cache=True).past_key_values for window in tokens]
    for index, (keys, values) in enumerate(kv_cache.fixed_scales(model, settings, context)):
        for found, which in ((keys, "keys"), (values, "values")):
            seen = torch.cat([getattr(cache.layers[index], which) for cache in caches])
            torch.testing.assert_close(found.flatten(), seen.abs().amax((0, 2, 3)) / 448, rtol=1e-5, atol=0)
    tensor = kv_cache.fixed_scales(model, kv_cache.Settings(bits=8, format="fp8", scale="tensor"), context)
    assert tensor[0][0].tolist() == [kv_cache.fixed_scales(model, settings, context)[0][0].max().item()]


FAMILY_SETTINGS: list[dict[str, Any]] = [
    {"bits": 8, "format": "fp8", "scale": "head"},
    {"bits": 8, "scale": "token_head"},
    {"bits": 4, "scale": "token_head"},
    {"bits": 4, "value_bits": 2, "group_size": 4},
]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_families_in_bfloat16_from_disk(tmp_path: Path, family: str) -> None:
    base = families.build(tmp_path / "base", family)
    statistics, tokens = calibrated(base, tmp_path), torch.randint(3, 300, (2, 24))
    for number, settings in enumerate(FAMILY_SETTINGS):
        out = made(base, tmp_path / str(number), statistics, **settings)
        ours, before = logits(load(out, base=base), tokens), logits(load(base), tokens)
        assert ours.isfinite().all()
        assert not torch.equal(ours, before)
        if "format" in settings:
            assert Weights(out, base).tensor("model.layers.0.self_attn.k_scale").dtype == torch.bfloat16
            theirs = AutoModelForCausalLM.from_pretrained(whole(out, base), dtype=torch.float32).eval()
            torch.testing.assert_close(logits(theirs, tokens), ours, rtol=0, atol=1e-5 * ours.abs().max().item())


def test_values_may_have_other_widths_than_keys(tiny: Path, text: Tensor, tmp_path: Path) -> None:
    keys, values = states(1, 2, 8, 8), states(1, 2, 8, 8, seed=1)
    for rounding in (TokenRounding(4, 4, 2), ChannelRounding(4, 4, 4, 2)):
        narrow = type(rounding)(**{**asdict(rounding), "bits": 2, "value_bits": None})
        wide = type(rounding)(**{**asdict(rounding), "value_bits": None})
        assert torch.equal(rounding.keys(keys), wide.keys(keys))
        assert torch.equal(rounding.values(values), narrow.values(values))
    for number, extra in enumerate(({}, {"keys": "channel", "residual": 8}, {"bits": 8, "scale": "token_head"})):
        settings: dict[str, Any] = {"bits": 4, "value_bits": 2, **extra}
        settings |= {"value_bits": 4} if "scale" in extra else {"group_size": 4}
        out = made(tiny, tmp_path / str(number), **settings)
        assert torch.equal(logits(load(out, base=tiny), text), logits(altered(tiny, settings, "float32"), text))
        assert read_manifest(out)["severity"] == (6 if "scale" in extra else 3)
    entries = kv_cache.cache_bytes(load(tiny), kv_cache.Settings(bits=4, value_bits=2, group_size=8))
    # 5 layers, 4 heads, 8 channels, a group each: codes, a scale of 16 bits and a zero point of a code's width.
    assert entries["cache_bytes_per_token"] == 5 * 4 * ((8 * 4 + 16 + 4) + (8 * 2 + 16 + 2)) / 8


def test_scales_per_token_and_head_are_counted_as_vllm_stores_them(tiny: Path) -> None:
    for bits in (8, 4):
        entries = kv_cache.cache_bytes(load(tiny), kv_cache.Settings(bits=bits, scale="token_head"))
        assert entries["cache_bytes_per_token"] == 5 * 2 * 4 * (8 * bits + 32) / 8
    fixed = kv_cache.cache_bytes(load(tiny), kv_cache.Settings(bits=8, format="fp8", scale="tensor"))
    assert fixed["cache_bytes_per_token"] == 5 * 2 * 4 * 8


@pytest.mark.parametrize("settings", [TOKEN, CHANNEL], ids=["token", "channel"])
def test_rounding_can_be_left_out(tiny: Path, text: Tensor, settings: dict[str, Any]) -> None:
    model = altered(tiny, settings)
    with exact():
        torch.testing.assert_close(logits(model, text), logits(load(tiny, "float64"), text), atol=1e-5, rtol=0)


def test_a_second_quantization_is_refused(tiny: Path) -> None:
    for first in (TOKEN, CHANNEL):
        for second in (TOKEN, CHANNEL):
            with pytest.raises(ValueError, match="keys and values are quantized or evicted already"):
                kv_cache.alter(altered(tiny, first), kv_cache.Settings.model_validate(second), Context())


def test_bytes_of_the_cache(tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(made(tiny, tmp_path / "out", bits=2, group_size=8))
    # 5 layers, keys and values, 4 heads, 8 channels of 2 bits, a scale of 16 and a zero point of 2.
    assert manifest["cache_bytes_per_token"] == 5 * 2 * 4 * (8 * 2 + 16 + 2) / 8
    assert manifest["cache_bytes_per_token_base"] == 5 * 2 * 4 * 8 * 4
    assert manifest["cache_exact_tokens"] == 0
    assert manifest["changed"] == 0
    assert manifest["axis"] == "cache_bits"
    assert manifest["size_ratio"] == 1


def test_kivi_counts_a_scale_and_a_minimum_of_16_bits_each(tiny: Path) -> None:
    entries = kv_cache.cache_bytes(load(tiny), kv_cache.Settings.model_validate(CHANNEL))
    # 5 layers, keys and values, 4 heads, 8 channels of 3 bits, two groups of 4 numbers.
    assert entries["cache_bytes_per_token"] == 5 * 2 * 4 * (8 * 3 + 2 * 32) / 8
    assert entries["cache_exact_tokens"] == 8


def test_settings() -> None:
    settings = kv_cache.Settings(bits=4)
    assert settings.label == "4 bit cache, per token, groups of 32"
    assert settings.severity == 4.0
    assert settings.statistics == ()
    kivi = kv_cache.Settings(bits=2, keys="channel")
    assert kivi.curve == "keys per channel, groups of 32, 128 tokens exact"
    assert kv_cache.Settings(bits=8, format="fp8", scale="tensor").label == "8 bit cache, FP8, a fixed scale per layer"
    assert kv_cache.Settings(bits=4, scale="token_head").label == "4 bit cache, a scale per token and head"
    mixed = kv_cache.Settings(bits=4, value_bits=2)
    assert mixed.label == "4 bit cache, values of 2 bits, per token, groups of 32"
    assert (mixed.severity, settings.value_bits) == (3.0, None)
    assert len({each.identity for each in (settings, kivi, mixed, kv_cache.Settings(bits=4, scale="token_head"))}) == 4
    for wrong in (
        {"bits": 1},
        {"bits": 4, "residual": 32},
        {"bits": 4, "keys": "channel", "residual": 48},
        {"bits": 4, "keys": "row"},
        {"bits": 8, "scale": "tensor"},
        {"bits": 8, "format": "fp8"},
        {"bits": 4, "format": "fp8", "scale": "one"},
        {"bits": 8, "value_bits": 4, "format": "fp8", "scale": "head"},
        {"bits": 3, "scale": "token_head"},
        {"bits": 8, "scale": "token_head", "group_size": 32},
        {"bits": 8, "scale": "token_head", "keys": "channel"},
    ):
        with pytest.raises(ValueError, match="validation error"):
            kv_cache.Settings.model_validate(wrong)


def test_impossible_settings_are_refused_before_any_work(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    assert kv_cache.Settings(bits=4, group_size=8).check(config) is None
    reason = kv_cache.Settings(bits=4).check(config)
    assert reason == "group_size 32 does not divide the model's head_dim of 8"
    kivi = kv_cache.Settings(bits=4, group_size=8, keys="channel", residual=8)
    assert kivi.check(config) is None
    assert "sliding window" in (kivi.check({**config, "sliding_window": 64}) or "")
    assert "caps" in (kivi.check({**config, "attn_logit_softcapping": 50.0}) or "")
