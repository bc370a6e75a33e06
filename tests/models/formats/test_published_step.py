"""Folders in the formats of others through the compress step: equal to what transformers loads of the same folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import exact
from hemorrhage.models.emulation.kv_cache import FixedRounding, has_rounding
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.tools.export import export
from tests import compressed, families
from tests.models.sources import folders

TOKENS = torch.randint(3, 512, (2, 48), generator=torch.Generator().manual_seed(1))


def inputs_of(preset: str) -> dict[str, Any]:
    """How a scheme of llm-compressor's rounds inputs."""
    return dict(preset_name_to_scheme(preset, ["Linear"]).input_activations or ())


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 of odd sizes that groups of 32 divide: one key-value head, biases, tied embeddings."""
    source = tmp_path_factory.mktemp("source") / "llama"
    config = LlamaConfig(
        vocab_size=512, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=200, attention_bias=True, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return prepared(source, config, tiny)


def prepared(source: Path, config: Any, tokenizer: Path) -> Path:
    """The base step's folder of a new model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    families.fill(model)
    model.to(torch.bfloat16).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, source / name)
    out = source.with_name("base")
    prepare({"source": "path", "path": str(source)}, out)
    return out


def read(base: Path, folder: Path, out: Path) -> Any:
    """The manifest of a published folder's variant."""
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(folder)}, "seed": 0}
    compress(out, "v", base, None, None, [], spec)
    assert failure(out) is None
    return read_manifest(out)


def mean_nll(model: Any) -> float:
    with torch.no_grad():
        logits = model(TOKENS).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("pack group", {}),
        ("pack asymmetric", {}),
        ("pack channel of 3 bits", {}),
        ("pack group", inputs_of("W4AFP8")),
        ("int channel", inputs_of("W8A8")),
        ("int tensor", {"num_bits": 8, "strategy": "token", "symmetric": False, "dynamic": True}),
        ("float tensor", inputs_of("FP8")),
        ("float channel", inputs_of("FP8_DYNAMIC")),
        ("float block", {**inputs_of("FP8_BLOCK"), "group_size": 32}),
        ("nvfp4", {}),
        ("nvfp4", inputs_of("NVFP4")),
        ("mxfp4", inputs_of("MXFP4")),
        ("mxfp8", inputs_of("MXFP8")),
    ],
)
def test_what_compressed_tensors_writes_is_what_it_computes(
    base: Path, tmp_path: Path, name: str, inputs: dict[str, Any]
) -> None:
    scheme = compressed.scheme_of(name, **inputs)
    folder = compressed.save(base, tmp_path / "theirs", [scheme], TOKENS)
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["lineage"]["verdict"] == "same"
    assert manifest["storage"].startswith(f"compressed-tensors {scheme.format}: ")
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    compressed.decompress(theirs)
    weights = {name: value.float() for name, value in theirs.named_parameters() if name.endswith("_proj.weight")}
    nn.Module.float(theirs)
    for as_stored in (False, True):
        ours = load(tmp_path / "v", base=base, as_stored=as_stored)
        assert has_rounding(ours) == bool(inputs)
        assert mean_nll(ours) == pytest.approx(mean_nll(theirs), abs=1e-5)
        if not as_stored:
            own = dict(ours.named_parameters())
            assert all(torch.equal(own[name], value) for name, value in weights.items())
            assert len(weights) == 14


FP8_CACHE = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False, symmetric=True)


def test_keys_and_values_in_fp8_are_what_compressed_tensors_computes(base: Path, tmp_path: Path) -> None:
    schemes = [compressed.scheme_of("float channel", **inputs_of("FP8_DYNAMIC"))]
    folder = compressed.save(base, tmp_path / "theirs", schemes, TOKENS, FP8_CACHE)
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["storage"].endswith("; keys and values in 8-bit float")
    assert manifest["notes"] == []
    theirs: Any = compressed.decompress(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    ours = load(tmp_path / "v", base=base)
    assert mean_nll(ours) == pytest.approx(mean_nll(nn.Module.float(theirs)), abs=1e-5)
    scales = ours.config.hemorrhage["kv_cache"]["e4m3_scales"]
    assert scales == [[pytest.approx(0.002, rel=0.01), pytest.approx(0.0005, rel=0.01)],
                      [pytest.approx(0.004, rel=0.01), pytest.approx(0.001, rel=0.01)]]  # fmt: skip
    # The rounding is no small matter here.
    for module in ours.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, FixedRounding):
                del module._forward_pre_hooks[key]
    assert abs(mean_nll(ours) - mean_nll(theirs)) > 1e-3


def test_a_cache_whose_scales_are_not_there_is_noted(base: Path, tmp_path: Path) -> None:
    schemes = [compressed.scheme_of("float channel")]
    folder = compressed.save(base, tmp_path / "theirs", schemes, TOKENS, FP8_CACHE)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_scale"]
    save_file(tensors, folder / "model.safetensors", folders.META)
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["notes"] == ["Keys and values are not rounded here, though the configuration asks for it."]
    assert not has_rounding(load(tmp_path / "v", base=base))


def test_a_quantized_head_stays_stored_as_it_is_and_what_it_does_not_round_is_noted(tmp_path: Path) -> None:
    source = families.build(tmp_path / "source", "llama")
    prepare({"source": "path", "path": str(source)}, tmp_path / "base")
    scheme = compressed.scheme_of("float channel", **inputs_of("FP8_DYNAMIC"))
    folder = compressed.save(source, tmp_path / "theirs", [scheme], TOKENS, ignore=[])
    manifest = read(tmp_path / "base", folder, tmp_path / "v")
    assert manifest["notes"] == ["Inputs of lm_head are not rounded here, though the configuration asks for it."]
    theirs: Any = compressed.decompress(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    ours = load(tmp_path / "v", base=tmp_path / "base")
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight.float())
    published, stored = load_file(folder / "model.safetensors"), load_file(tmp_path / "v" / "model.safetensors")
    for suffix in ("weight", "weight_scale"):
        assert torch.equal(stored[f"lm_head.{suffix}"].float(), published[f"lm_head.{suffix}"].float())
        assert stored[f"lm_head.{suffix}"].dtype == published[f"lm_head.{suffix}"].dtype
    theirs.lm_head.quantization_enabled = False
    assert mean_nll(ours) == pytest.approx(mean_nll(nn.Module.float(theirs)), abs=1e-5)


def test_a_quantized_head_that_is_tied_is_one_line(base: Path, tmp_path: Path) -> None:
    folder = compressed.save(base, tmp_path / "theirs", [compressed.scheme_of("float channel")], TOKENS)
    codes, scale = torch.zeros(512, 96).to(torch.float8_e4m3fn), torch.ones(512, 1)
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": codes, "lm_head.weight_scale": scale}
    save_file({**tensors, **head}, folder / "model.safetensors", folders.META)
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(folder)}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, None, [], spec)
    assert "lm_head.weight and model.embed_tokens.weight with different numbers" in str(failure(tmp_path / "v"))


MIXED = {
    r"re:.*self_attn\.[qk]_proj": "pack asymmetric",
    "re:.*mlp.*": "float channel",
    "model.layers.1.self_attn.o_proj": "nvfp4",
}
"""Targets -> format: two expressions and a name; other layers are not quantized."""


@pytest.mark.parametrize("name", ["pack asymmetric", "int channel", "float block", "nvfp4", "mxfp4", "mixed"])
def test_what_the_bench_writes_of_it_transformers_computes_alike(base: Path, tmp_path: Path, name: str) -> None:
    names = MIXED if name == "mixed" else {"Linear": name}
    schemes = [compressed.scheme_of(each, targets=[target]) for target, each in names.items()]
    folder = compressed.save(base, tmp_path / "theirs", schemes, TOKENS)
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["engine"].endswith("transformers 5.17 (CPU or GPU)")
    assert ("vLLM 0.33" in manifest["engine"]) == (name in ("pack asymmetric", "nvfp4", "mxfp4"))
    export(tmp_path / "v", tmp_path / "packed", "packed", base)
    stored, theirs = (load_file(each / "model.safetensors") for each in (tmp_path / "packed", folder))
    assert set(theirs) <= set(stored)
    assert all(torch.equal(bits(stored[name]), bits(value)) for name, value in theirs.items())
    losses = []
    for each in (tmp_path / "packed", folder):
        model: Any = AutoModelForCausalLM.from_pretrained(each, dtype="auto")
        compressed.decompress(model)
        losses.append(mean_nll(nn.Module.float(model)))
    losses.append(mean_nll(load(tmp_path / "v", base=base)))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def bits(value: Tensor) -> Tensor:
    """The bytes of a tensor: torch does not compare all types."""
    return value.contiguous().flatten().view(torch.uint8)


def blocks_of_fp8(value: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """DeepSeek's FP8 of a matrix that blocks of ``size`` divide, and its scales."""
    blocks = value.float().unflatten(1, (-1, size)).unflatten(0, (-1, size))
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).flatten(0, 1).flatten(1)
    return codes.to(torch.float8_e4m3fn), scale


def rewritten(base: Path, out: Path, change: Callable[[str, Tensor], dict[str, Tensor]], **settings: Any) -> Path:
    """A copy of a folder with each linear layer's weight in other tensors, by suffix."""
    shutil.copytree(base, out)
    for name in ("manifest.json", "shared.json", "check.safetensors"):
        (out / name).unlink(missing_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(base / "model.safetensors").items():
        is_linear = ".layers." in name and value.dim() == 2 and not name.endswith("gate.weight")
        layer = name.removesuffix(".weight")
        pieces = change(layer, value) if is_linear else {"": value}
        tensors |= {f"{layer}.{suffix}" if suffix else name: piece.contiguous() for suffix, piece in pieces.items()}
    save_file(tensors, out / "model.safetensors", folders.META)
    folders.settings(out / "config.json", quantization_config=settings)
    return out


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "deepseek_v3"])
def test_fine_grained_fp8_is_what_transformers_dequantizes(tmp_path: Path, family: str) -> None:
    source = families.build(tmp_path / "source", family)
    prepare({"source": "path", "path": str(source)}, tmp_path / "base")

    def change(_layer: str, value: Tensor) -> dict[str, Tensor]:
        codes, scale = blocks_of_fp8(value, 8)
        return {"weight": codes, "weight_scale_inv": scale}

    folder = rewritten(
        source, tmp_path / "theirs", change,
        quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[8, 8],
    )  # fmt: skip
    manifest = read(tmp_path / "base", folder, tmp_path / "v")
    assert manifest["storage"] == "fine-grained FP8, blocks of 8x8, inputs FP8 in groups of 8 per token"
    assert manifest["layer_bits"] == pytest.approx(8.5, abs=0.01)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = load(tmp_path / "v", base=tmp_path / "base")
    with exact():
        assert mean_nll(ours) == pytest.approx(mean_nll(theirs), abs=1e-5)
    # transformers dequantizes without a GPU, and computes with inputs as they are.
    assert has_rounding(ours)
    assert mean_nll(ours) != pytest.approx(mean_nll(theirs), abs=1e-6)


def test_gpt_oss_in_mxfp4_is_what_transformers_dequantizes(tmp_path: Path, tiny: Path) -> None:
    config = copy.deepcopy(families.config_of("gpt_oss"))
    config.hidden_size, config.intermediate_size = 96, 64
    base = prepared(tmp_path / "source", config, tiny)
    folder = tmp_path / "theirs"
    shutil.copytree(tmp_path / "source", folder)
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = value
            continue
        experts, columns, rows = value.shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(119, 124, shape, generator=generator).to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", folders.META)
    folders.settings(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["storage"] == "MXFP4 experts, groups of 32"
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # It leaves what it dequantizes in bfloat16.
    nn.Module.float(theirs)
    ours = load(tmp_path / "v", base=base)
    assert mean_nll(ours) == pytest.approx(mean_nll(theirs), abs=1e-5)
    as_stored = load(tmp_path / "v", base=base, as_stored=True)
    assert mean_nll(as_stored) == pytest.approx(mean_nll(theirs), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
def test_modelopt_is_codes_times_its_scales(base: Path, tmp_path: Path, algorithm: str) -> None:
    expected: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])

    def change(layer: str, value: Tensor) -> dict[str, Tensor]:
        rows, columns = value.shape
        scale = torch.tensor(0.001) * (1 + torch.rand((), generator=generator))
        if algorithm == "FP8":
            codes = (value.float() / scale).to(torch.float8_e4m3fn)
            expected[layer] = codes.float() * scale
            return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.01)}
        codes = torch.randint(0, 16, (rows, columns), generator=generator).to(torch.uint8)
        scales = (torch.rand(rows, columns // 16, generator=generator) * 30 + 1).to(torch.float8_e4m3fn)
        factors = (scales.float() * scale).repeat_interleave(16, 1)
        expected[layer] = table[codes.long()] * factors
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        return {"weight": packed, "weight_scale": scales, "weight_scale_2": scale, "input_scale": torch.tensor(0.004)}

    cache = {
        f"model.layers.{index}.self_attn.{which}_proj.{which}_scale": torch.tensor(0.001 * (index + 1))
        for index in range(2)
        for which in "kv"
    }

    folder = rewritten(base, tmp_path / "theirs", change, quant_method="modelopt", quant_algo=algorithm)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **cache}, folder / "model.safetensors", folders.META)
    # Older exports have a file of their own.
    settings = json.loads((folder / "config.json").read_text())
    del settings["quantization_config"]
    (folder / "config.json").write_text(json.dumps(settings))
    entry = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": entry}))
    manifest = read(base, folder, tmp_path / "v")
    assert manifest["storage"] == f"ModelOpt {algorithm}; keys and values in FP8"
    ours = load(tmp_path / "v", base=base)
    assert has_rounding(ours)
    own = dict(ours.named_parameters())
    assert ours.config.hemorrhage["kv_cache"]["e4m3_scales"] == [
        [value, value] for value in torch.tensor([0.001, 0.002]).tolist()
    ]
    assert expected
    assert all(torch.equal(own[f"{layer}.weight"], value) for layer, value in expected.items())
    stored = load(tmp_path / "v", base=base, as_stored=True)
    assert mean_nll(stored) == pytest.approx(mean_nll(ours), abs=1e-5)


def test_codes_without_their_scales_are_never_taken_for_weights(base: Path, tmp_path: Path) -> None:
    def change(layer: str, value: Tensor) -> dict[str, Tensor]:
        codes, scale = blocks_of_fp8(value, 32)
        return {"weight": codes} if layer.endswith("1.mlp.up_proj") else {"weight": codes, "weight_scale_inv": scale}

    folder = rewritten(base, tmp_path / "theirs", change, quant_method="fp8", weight_block_size=[32, 32])
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(folder)}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, None, [], spec)
    line = "model.layers.1.mlp.up_proj.weight is of type F8_E4M3, and the scales that it needs are not there"
    assert line in str(failure(tmp_path / "v"))


# Of NVFP4 transformers leaves the experts' global scales out.
@pytest.mark.parametrize("name", ["pack group", "float channel"])
def test_experts_that_compressed_tensors_stores_are_what_transformers_computes(tmp_path: Path, name: str) -> None:
    source = families.build(tmp_path / "source", "qwen3_moe")
    prepare({"source": "path", "path": str(source)}, tmp_path / "base")
    # Groups of 16 divide the 80, 48 and 96 columns of this family.
    scheme = compressed.scheme_of(name)
    folder = rewritten(
        source, tmp_path / "theirs", lambda _, value: compressed.compressed(name, value)[0],
        **compressed.quantization_config(scheme, ignore=["lm_head", "re:.*mlp.gate$"]),
    )  # fmt: skip
    manifest = read(tmp_path / "base", folder, tmp_path / "v")
    assert manifest["lineage"]["verdict"] == "same"
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    compressed.decompress(theirs)
    nn.Module.float(theirs)
    assert mean_nll(load(tmp_path / "v", base=tmp_path / "base")) == pytest.approx(mean_nll(theirs), abs=1e-5)
