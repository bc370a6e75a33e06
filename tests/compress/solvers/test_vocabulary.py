"""Embedding and head in few bits: literal rounding, tied and untied, from disk, and as other programs read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hemorrhage.calibrate.gradients import gradients
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import awq, mixed, rtn
from hemorrhage.compress.solvers.vocabulary import check_vocabulary
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engines import answer
from hemorrhage.models.formats.storage import plain_dtype, vocabulary_layers
from hemorrhage.models.packed_folder import packed_folder
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests.calibration import calibrated

SIZES = {
    "vocab_size": 101, "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CASES: dict[str, tuple[str, bool, torch.dtype]] = {
    "tied": ("llama", True, torch.bfloat16),
    "untied": ("qwen3", False, torch.bfloat16),
    "scaled by the embedding": ("gemma3_text", True, torch.bfloat16),
    "head with a bias": ("phi", False, torch.float16),
    "float32": ("qwen2", True, torch.float32),
}


def make(folder: Path, model_type: str, tied: bool, dtype: torch.dtype) -> Path:
    torch.manual_seed(0)
    special = {"head_dim": 24} if model_type in ("llama", "qwen3", "gemma3_text") else {}
    config = AutoConfig.for_model(model_type, **SIZES, **special, tie_word_embeddings=tied)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for value in model.parameters():
        value.data = torch.randn_like(value) / 8
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(params=CASES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path / "base", *CASES[request.param])


def made(base: Path, out: Path, **settings: Any) -> dict[str, Any]:
    spec = {"sweep": "s", "method": "rtn", "settings": settings, "seed": 0}
    compress(out, "v", base, None, None, [], spec)
    manifest: dict[str, Any] = read_manifest(out)
    assert "failure" not in manifest
    return manifest


def literal(weight: Tensor, bits: int, group: int) -> Tensor:
    """``weight`` rounded to nearest, number by number, with scales in its own dtype: float32."""
    rounded = torch.empty(weight.shape)
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            numbers = weight[row, start : start + group].float()
            scale = (2 * numbers.abs().max() / (2**bits - 1)).to(weight.dtype).float()
            codes = (numbers / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            rounded[row, start : start + group] = codes * scale
    return rounded


def matrices(model: Any) -> dict[str, Tensor]:
    into, out = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    return {"into": into} if into is out or into.data_ptr() == out.data_ptr() else {"into": into, "out": out}


@pytest.mark.parametrize("bits", [3, 8])
def test_a_checkpoint_reads_back_as_literal_rounding(base: Path, tmp_path: Path, bits: int) -> None:
    manifest = made(base, tmp_path / "out", bits=4, group_size=16, embeddings=bits)
    before, after = load(base, "stored"), load(tmp_path / "out", base=base)
    verify(after, tmp_path / "out")
    assert matrices(before).keys() == matrices(after).keys()
    for which, weight in matrices(before).items():
        assert torch.equal(matrices(after)[which], literal(weight, bits, 16))
    # Dense as it is evaluated, and block by block from packed words.
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        streamed = load(tmp_path / "out", base=base, streamed=True)(tokens).logits
        torch.testing.assert_close(streamed, after(tokens).logits, rtol=1e-5, atol=1e-5)
    weights = Weights(tmp_path / "out", base)
    bits_of = {name: 8 * weights.dtype(name).itemsize * weights.shape(name).numel() for name in weights.names()}
    assert manifest["effective_bits"] == pytest.approx(sum(bits_of.values()) / manifest["parameters"])
    packed = [name for name in bits_of if name.endswith(".weight_packed") and ".layers." not in name]
    assert len(packed) == len(matrices(before))


def test_layers_and_their_bits_are_those_without_the_option(base: Path, tmp_path: Path) -> None:
    plain = made(base, tmp_path / "plain", bits=4, group_size=16)
    rounded = made(base, tmp_path / "rounded", bits=4, group_size=16, embeddings=4)
    assert rounded["layer_bits"] == plain["layer_bits"]
    assert rounded["parameters"] == plain["parameters"]
    assert rounded["disk_bytes"] < plain["disk_bytes"]
    assert rounded["curve"] == "groups of 16, embedding and head 4 bit"
    assert plain["curve"] == "groups of 16"
    for name, value in Weights(tmp_path / "plain", base).items():
        if ".layers." in name:
            assert torch.equal(value, Weights(tmp_path / "rounded", base).tensor(name))


METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4},
    "awq": {"bits": 4},
    "autoround": {"bits": 4, "iterations": 2, "batch": 2},
    "mixed": {"budget": 12, "rounding": "gptq"},
}


def test_methods_with_a_calibration_round_both_to_nearest(tiny: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    gradients(tmp_path / "gradients", tiny, calibration, {"part": "loss"})
    (weight,) = matrices(load(tiny, "stored")).values()
    expected = literal(weight, 5, 4)
    for method, settings in METHODS.items():
        content = {**settings, "group_size": 4, "embeddings": 5}
        spec = {"sweep": "s", "method": method, "settings": content, "seed": 0}
        compress(tmp_path / method, "v", tiny, None, calibration, [tmp_path / "gradients"], spec)
        assert "failure" not in read_manifest(tmp_path / method), method
        (rounded,) = matrices(load(tmp_path / method, base=tiny)).values()
        assert torch.equal(rounded, expected), method


@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_tensors_reads_embedding_and_head_with_difference_0(
    base: Path, tmp_path: Path, symmetric: bool
) -> None:
    made(base, tmp_path / "out", bits=4, group_size=16, symmetric=symmetric, embeddings=4)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    model = load(tmp_path / "out", base=base)
    names = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    for name in (name for name in names if ".layers." not in name):
        group = next(group for group in groups.values() if name in group["targets"])
        stored = {
            key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.weight")
        }
        scheme = QuantizationScheme.model_validate(group)
        dense = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
        # The library multiplies in the scales' dtype.
        assert torch.equal(dense, model.get_parameter(f"{name}.weight").to(dense.dtype))


def test_a_variant_that_changes_no_weight_keeps_them_packed(tmp_path: Path) -> None:
    base = make(tmp_path / "base", *CASES["untied"])
    made(base, tmp_path / "parent", bits=4, group_size=16, embeddings=4)
    settings = {"bits": 4, "group_size": 8}
    spec = {"sweep": "s", "method": "kv_cache", "settings": settings, "seed": 0, "on": "parent"}
    compress(tmp_path / "out", "v", base, tmp_path / "parent", None, [], spec)
    assert "failure" not in read_manifest(tmp_path / "out")
    before, after = (dict(Weights(tmp_path / name, base).items()) for name in ("parent", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    model = load(tmp_path / "out", "stored", as_stored=True, base=base)
    assert sorted(vocabulary_layers(model)) == ["lm_head", "model.embed_tokens"]
    assert plain_dtype(model) == torch.bfloat16


def test_a_dense_export_has_them_multiplied_out(base: Path, tmp_path: Path) -> None:
    made(base, tmp_path / "out", bits=4, group_size=16, embeddings=4)
    export(tmp_path / "out", tmp_path / "dense", "dense", base)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")
    ours = load(tmp_path / "out", base=base)
    for which, weight in matrices(exported).items():
        assert torch.equal(weight, matrices(ours)[which].to(weight.dtype))


def test_transformers_has_no_packed_embeddings(tmp_path: Path) -> None:
    base = make(tmp_path / "base", *CASES["untied"])
    made(base, tmp_path / "out", bits=4, group_size=16, embeddings=4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "transformers 5.17: it reads the dense weight of an embedding" in answer(config).reason
    with pytest.raises(
        RefusedError, match=r"model.embed_tokens is a Embedding in a qwen3, and compressed-tensors packs"
    ):
        packed_folder(tmp_path / "out", Weights(tmp_path / "out", base).names())


def test_groups_that_do_not_divide_the_rows_are_refused(tmp_path: Path) -> None:
    model = load(make(tmp_path / "base", *CASES["tied"]))
    check_vocabulary(model, 4, "channel")
    check_vocabulary(model, None, 48)
    with pytest.raises(RefusedError, match=r"group_size 48 does not divide the 80 inputs of model\.embed_tokens"):
        check_vocabulary(model, 4, 48)
    with pytest.raises(RefusedError, match="does not divide the 80 inputs of"):
        rtn.Settings(bits=4, group_size=48, embeddings=4).check_model(model)


def test_settings() -> None:
    for settings in (rtn.Settings(bits=4, embeddings=8), awq.Settings(bits=4, embeddings=8)):
        assert "embedding and head 8 bit" in settings.label
        assert json.loads(settings.identity)["embeddings"] == 8
    assert "embeddings" not in rtn.Settings(bits=4).identity
    assert mixed.Settings(budget=4.5, embeddings=4).label.endswith("embedding and head 4 bit")
    for wrong in (1, 9, True, "4"):
        with pytest.raises(ValueError, match="validation error"):
            rtn.Settings.model_validate({"bits": 4, "embeddings": wrong})
