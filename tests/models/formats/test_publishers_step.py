"""Folders in the formats of other programs, through the step: an odd-sized base, and the logits of their weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.codebook import STATE
from hemorrhage.runtime.artifact import failure, read_manifest
from tests.models.formats import test_awq, test_bitsandbytes, test_gptq, test_hqq, test_mlx, test_torchao
from tests.models.sources import folders

TOKENS = torch.randint(500, (2, 40), generator=torch.Generator().manual_seed(0))

Stored = dict[str, Tensor]


def judge(base: Path, files: Path, out: Path, weights: dict[str, Tensor]) -> Any:
    """The manifest of ``files`` as a variant; its logits are those of its tensors and ``weights``, to 1e-5."""
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(files)}, "seed": 0}
    compress(out, "v", base, None, None, [], spec)
    assert failure(out) is None
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = load_file(files / "model.safetensors")
    dense = {f"{name}.weight": weight for name, weight in weights.items()}
    theirs.load_state_dict({name: {**plain, **dense}.get(name, value) for name, value in theirs.state_dict().items()})
    ours = load(out, base=base)
    with torch.inference_mode():
        expected, logits = theirs(TOKENS).logits, ours(TOKENS).logits
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    return read_manifest(out)


def linears(folder: Path) -> dict[str, nn.Linear]:
    """The linear layers of a folder's blocks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: each for name, each in model.model.named_modules(prefix="model") if isinstance(each, nn.Linear)}


@pytest.fixture(scope="module")
def source(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.llama(tiny, tmp_path_factory.mktemp("source") / "llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def base(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    prepare({"source": "path", "path": str(source)}, out)
    return out


def gptq_v1(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_gptq.layer(3, rows, columns, 8, act_order=True)


def gptq_v2(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_gptq.layer(4, rows, columns, -1, version=2, zero=0)


def awq(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_awq.layer(rows, columns, 8)


def llm_int8(rows: int, columns: int) -> tuple[Stored, Tensor]:
    stored = test_bitsandbytes.int8(rows, columns)
    return stored, (stored["weight"].double() * stored["SCB"].double().view(-1, 1) / 127).float()


def hqq(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_hqq.layer("4bit_u8", rows, columns, 8, 1)


def torchao(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_torchao.int8(rows, columns, (rows, 1))


def mlx(rows: int, columns: int) -> tuple[Stored, Tensor]:
    return test_mlx.layer(4, rows, columns, 8, torch.bfloat16)


FORMATS: dict[str, tuple[Callable[[int, int], tuple[Stored, Tensor]], dict[str, Any], str]] = {
    "gptq v1": (
        gptq_v1,
        {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 8, "desc_act": True}},
        "GPTQ, 3 bits, groups of 8, act-order",
    ),
    "gptq v2": (
        gptq_v2,
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"}},
        "GPTQ, 4 bits, a scale a row",
    ),
    "awq": (
        awq,
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}},
        "AWQ, 4 bits, groups of 8",
    ),
    "bitsandbytes": (
        llm_int8,
        {"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 6.0}},
        "bitsandbytes LLM.int8, 8 bits; inputs are not rounded",
    ),
    "hqq": (
        hqq,
        {"quantization_config": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}},
        "HQQ, 4 bits, a scale a row",
    ),
    "torchao": (
        torchao,
        {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnly"}}}},
        "torchao, Int8WeightOnly",
    ),
    "mlx": (mlx, {"quantization": {"bits": 4, "group_size": 8}}, "MLX, 4 bits, groups of 8"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_is_read_as_its_format_says(source: Path, base: Path, tmp_path: Path, name: str) -> None:
    make, config, words = FORMATS[name]
    tensors = load_file(source / "model.safetensors")
    weights, bits = {}, 0.0
    # The head is quantized, too, and counts no bits of the blocks.
    for layer, linear in {**linears(source), "lm_head": nn.Linear(80, 512)}.items():
        stored, weights[layer] = make(linear.out_features, linear.in_features)
        del tensors[f"{layer}.weight"]
        tensors |= {f"{layer}.{suffix}": value for suffix, value in stored.items()}
        bits += sum(8.0 * value.nbytes for value in stored.values()) * (layer != "lm_head")
    shutil.copytree(source, tmp_path / "files")
    save_file(tensors, tmp_path / "files/model.safetensors", folders.META)
    folders.settings(tmp_path / "files/config.json", **config)
    manifest = judge(base, tmp_path / "files", tmp_path / "v", weights)
    assert manifest["storage"] == words
    assert manifest["lineage"]["differing"] == ["lm_head.weight"]
    del weights["lm_head"]
    assert manifest["layer_bits"] == pytest.approx(bits / sum(value.numel() for value in weights.values()))


@pytest.mark.parametrize("name", ["gptq v1", "bitsandbytes", "hqq", "torchao"])
def test_a_tied_model_of_float32_is_read_as_the_format_says(tiny: Path, tmp_path: Path, name: str) -> None:
    def make(rows: int, columns: int) -> tuple[Stored, Tensor]:
        if name == "gptq v1":
            return test_gptq.layer(4, rows, columns, 4)
        return test_hqq.layer("2bit_u8", rows, columns, 4, 0) if name == "hqq" else FORMATS[name][0](rows, columns)

    prepare({"source": "path", "path": str(tiny)}, tmp_path / "base")
    tensors, weights = load_file(tiny / "model.safetensors"), {}
    for layer, linear in linears(tiny).items():
        stored, weights[layer] = make(linear.out_features, linear.in_features)
        del tensors[f"{layer}.weight"]
        tensors |= {f"{layer}.{suffix}": value for suffix, value in stored.items()}
    shutil.copytree(tiny, tmp_path / "files")
    save_file(tensors, tmp_path / "files/model.safetensors", folders.META)
    folders.settings(tmp_path / "files/config.json", **FORMATS[name][1])
    if name == "gptq v1":
        settings = {"quant_method": "gptq", "bits": 4, "group_size": 4}
        folders.settings(tmp_path / "files/config.json", quantization_config=settings)
    manifest = judge(tmp_path / "base", tmp_path / "files", tmp_path / "v", weights)
    assert manifest["lineage"]["verdict"] == "same"


def test_older_markers_lie_in_a_file_beside_it(source: Path, base: Path, tmp_path: Path) -> None:
    tensors, weights = load_file(source / "model.safetensors"), {}
    for layer, linear in linears(source).items():
        stored, weights[layer] = awq(linear.out_features, linear.in_features)
        del tensors[f"{layer}.weight"]
        tensors |= {f"{layer}.{suffix}": value for suffix, value in stored.items()}
    shutil.copytree(source, tmp_path / "files")
    save_file(tensors, tmp_path / "files/model.safetensors", folders.META)
    settings = {"zero_point": True, "q_group_size": 8, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "files/quant_config.json").write_text(json.dumps(settings))
    manifest = judge(base, tmp_path / "files", tmp_path / "v", weights)
    assert manifest["storage"] == "AWQ, 4 bits, groups of 8"


def test_a_broken_layer_is_named_in_one_line(source: Path, base: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    stored, _ = gptq_v1(120, 80)
    layer = "model.layers.1.self_attn.q_proj"
    del tensors[f"{layer}.weight"], stored["scales"]
    tensors |= {f"{layer}.{suffix}": value for suffix, value in stored.items()}
    shutil.copytree(source, tmp_path / "files")
    save_file(tensors, tmp_path / "files/model.safetensors", folders.META)
    folders.settings(tmp_path / "files/config.json", **FORMATS["gptq v1"][1])
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(tmp_path / "files")}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, None, [], spec)
    line = f"{tmp_path / 'files'}: {layer}: lacks the tensor scales"
    assert line in str(failure(tmp_path / "v"))


@pytest.fixture(scope="module")
def even(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths are what other programs' kernels want: multiples of 32, in float16."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("even") / "llama"
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        attention_bias=True,
        tie_word_embeddings=False,
        max_position_embeddings=200,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).half().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, out / name)
    return out


@pytest.fixture(scope="module")
def even_base(even: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("even_base") / "base"
    prepare({"source": "path", "path": str(even)}, out)
    return out


def by_auto_round(stored: Stored, bits: int, module: Any) -> Tensor:
    """The weight with which auto-round's layer of GPTQ's tensors computes."""
    columns, rows = len(stored["qweight"]) * 32 // bits, stored["scales"].shape[1]
    layer = module.QuantLinear(bits, 32, columns, rows, bias=False)
    layer.load_state_dict({name: stored[name] for name in ("qweight", "qzeros", "scales")})
    weight: Tensor = layer(torch.eye(columns))
    return weight.T.contiguous()


def by_auto_awq(stored: Stored) -> Tensor:
    """The weight by AutoAWQ's definition: nibbles in order, then each eight of them in the reverse order of packing."""
    codes, zeros = (
        torch.stack([stored[name] >> shift & 15 for shift in range(0, 32, 4)], dim=2)[..., [0, 4, 1, 5, 2, 6, 3, 7]]
        for name in ("qweight", "qzeros")
    )
    groups = torch.arange(len(codes)) // 32
    return ((codes.flatten(1) - zeros.flatten(1)[groups]) * stored["scales"][groups]).T.float().contiguous()


@pytest.mark.parametrize(
    ("file_format", "bits", "symmetric", "words"),
    [
        ("auto_gptq", 4, False, "GPTQ, 4 bits, groups of 32"),
        ("auto_awq", 4, False, "AWQ, 4 bits, groups of 32"),
        ("auto_round", 3, True, "auto-round as GPTQ, 3 bits, groups of 32"),
    ],
)
def test_what_auto_round_writes(
    even: Path, even_base: Path, tmp_path: Path, file_format: str, bits: int, symmetric: bool, words: str
) -> None:
    from auto_round import AutoRound

    model = AutoModelForCausalLM.from_pretrained(even, dtype=torch.float16)
    settings: dict[str, Any] = {"bits": bits, "group_size": 32, "sym": symmetric}
    rounder = AutoRound(
        model, AutoTokenizer.from_pretrained(even), iters=0, disable_opt_rtn=True, seqlen=32, nsamples=4, **settings
    )
    rounder.quantize_and_save(str(tmp_path / "out"), format=file_format)
    folder = next((tmp_path / "out").rglob("config.json")).parent
    tensors = load_file(folder / "model.safetensors")
    packing = json.loads((folder / "config.json").read_text())["quantization_config"].get("packing_format", "")
    module = qlinear_torch_zp if "auto_gptq" in (packing.partition(":")[2] or file_format) else qlinear_torch
    weights = {}
    for layer in linears(even):
        stored = {
            name.removeprefix(f"{layer}."): value for name, value in tensors.items() if name.startswith(f"{layer}.")
        }
        weights[layer] = by_auto_awq(stored) if "awq" in file_format else by_auto_round(stored, bits, module)
    manifest = judge(even_base, folder, tmp_path / "v", weights)
    assert manifest["storage"] == words
    assert bits + (16 + bits) / 32 <= manifest["layer_bits"] < bits + (16 + bits) / 32 + 1.01


def saved(even: Path, out: Path, config: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        even, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("double", [False, True])
def test_what_transformers_writes_with_bitsandbytes(even: Path, even_base: Path, tmp_path: Path, double: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    saved(even, tmp_path / "files", config)
    tensors = load_file(tmp_path / "files/model.safetensors")
    weights = {}
    for layer, linear in linears(even).items():
        piece = {
            name.removeprefix(f"{layer}."): value for name, value in tensors.items() if name.startswith(f"{layer}.")
        }
        weights[layer] = by_bitsandbytes(piece).view(linear.weight.shape)
    manifest = judge(even_base, tmp_path / "files", tmp_path / "v", weights)
    assert manifest["storage"] == f"bitsandbytes NF4, 4 bits{', double' * double}"


def by_bitsandbytes(stored: Stored) -> Tensor:
    """The weights in a row by the format's definition.

    The kernel of bitsandbytes 0.50 for AVX512 counts blocks anew in each row where rows are multiples of 16 but not of
    the block; those for GPUs and the others do not.
    """
    from bitsandbytes.functional import dequantize_blockwise

    (key,) = (name for name in stored if name.startswith(STATE))
    state = json.loads(bytes(stored[key].tolist()))
    absmax = stored["weight.absmax"]
    if "nested_blocksize" in state:
        absmax = dequantize_blockwise(
            absmax,
            absmax=stored["weight.nested_absmax"],
            code=stored["weight.nested_quant_map"],
            blocksize=state["nested_blocksize"],
        )
        absmax = absmax + state["nested_offset"]
    octets = stored["weight"].flatten()
    values = stored["weight.quant_map"][torch.stack([octets >> 4, octets & 15], dim=1).flatten().long()]
    return (
        values[: math.prod(state["shape"])] * absmax.repeat_interleave(state["blocksize"])[: math.prod(state["shape"])]
    )


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_what_transformers_writes_with_torchao(even: Path, even_base: Path, tmp_path: Path, kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    model = saved(even, tmp_path / "files", TorchAoConfig(getattr(quantization, kind)(version=2)))
    weights = {layer: model.get_submodule(layer).weight.dequantize().detach() for layer in linears(even)}
    manifest = judge(even_base, tmp_path / "files", tmp_path / "v", weights)
    assert manifest["storage"] == f"torchao, {kind}"


def test_what_mlx_lm_writes(even: Path, even_base: Path, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    mlx_lm = pytest.importorskip("mlx_lm")
    mlx_lm.convert(str(even), str(tmp_path / "files"), quantize=True, q_bits=4, q_group_size=32)
    model, _ = mlx_lm.load(str(tmp_path / "files"))
    weights = {}
    # Embedding and head are quantized, too.
    for name in (*linears(even), "model.embed_tokens", "lm_head"):
        layer = model
        for part in name.split("."):
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
        dense = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=4)
        assert dense.dtype == mx.float16
        weights[name] = torch.tensor(dense.tolist())
    manifest = judge(even_base, tmp_path / "files", tmp_path / "v", weights)
    assert manifest["storage"] == "MLX, 4 bits, groups of 32"
    assert manifest["lineage"]["verdict"] == "same"
    assert manifest["layer_bits"] == 5.0
