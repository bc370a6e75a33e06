"""Variants in every number format, exported packed: what transformers and compressed-tensors alone make of them.

Both run in a process in which this package can't be imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import exact
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import failure
from hemorrhage.tools.export import export
from tests.calibration import calibrated
from tests.families import COMMON, fill
from tests.tiny_model import save_tokenizer, train_tokenizer

SIZES: dict[str, Any] = {**COMMON, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SIZES, "head_dim": 32}),
    "qwen2": ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    "half": ("llama", {**SIZES, "head_dim": 32}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {**SIZES, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
}
"""Name -> family and settings: odd sizes that groups of 32 divide, one key-value head, tied or not, with biases."""

INT4 = {"bits": 4, "group_size": 32}
INT8 = {"bits": 8, "group_size": "channel"}

WEIGHTS: dict[str, dict[str, object]] = {
    name: {"format": name} for name in ("fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8")
}

ROUNDED: dict[str, dict[str, object]] = {
    "int8 int8_token": {**INT8, "inputs": "int8_token"},
    "int8 int8_tensor": {**INT8, "inputs": "int8_tensor"},
    "int8 int8_static": {**INT8, "inputs": "int8_static"},
    "int4 int4_token": {**INT4, "inputs": "int4_token"},
    "int4 int8_token": {**INT4, "inputs": "int8_token"},
    "int4 fp8_token": {**INT4, "inputs": "fp8_token"},
    "fp8 fp8_token": {"format": "fp8", "inputs": "fp8_token"},
    "fp8_tensor fp8_static": {"format": "fp8_tensor", "inputs": "fp8_static"},
    "nvfp4 nvfp4": {"format": "nvfp4", "inputs": "nvfp4"},
    "nvfp4 fp8_token": {"format": "nvfp4", "inputs": "fp8_token"},
    "mxfp4 mxfp4": {"format": "mxfp4", "inputs": "mxfp4"},
    "mxfp8 mxfp8": {"format": "mxfp8", "inputs": "mxfp8"},
}

TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(1))

ALONE = """
import json, sys
sys.modules["hemorrhage"] = None
from pathlib import Path
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.base import decompress_module
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

tokens = load_file(sys.argv[1])["tokens"]
for folder in map(Path, sys.argv[2:]):
    config = json.loads((folder / "config.json").read_text())
    layers = {}
    for name, value in load_file(folder / "model.safetensors").items():
        layers.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = value
    library = {}
    for group in config["quantization_config"]["config_groups"].values():
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        packed = {layer for layer, tensors in layers.items() if "weight_scale" in tensors}
        for layer in packed if "Linear" in group["targets"] else packed & set(group["targets"]):
            scheme = QuantizationScheme(**group)
            library[layer + ".weight"] = compressor.decompress(layers[layer], scheme)["weight"].contiguous()
    save_file(library, folder / "library.pt")

    model, about = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(about.values()), about
    with torch.no_grad():
        logits = model.eval()(tokens, use_cache=False).logits
        # compressed-tensors leaves scales beside the dense weights.
        weights = {
            name: value.clone()
            for name, value in model.state_dict().items()
            if name.rpartition(".")[2] in ("weight", "bias")
        }
        # transformers' own method refuses models that were quantized.
        wide = torch.nn.Module.float(model)(tokens, use_cache=False).logits
    save_file({"logits": logits, "wide": wide}, folder / "logits.pt")
    save_file({**weights}, folder / "weights.pt")
"""


@dataclass(frozen=True)
class Read:
    """What other programs made of an exported variant; ``library``: compressed-tensors' own weights of its layers.

    ``wide``: logits of the same weights in float32.
    """

    logits: Tensor
    wide: Tensor
    weights: Mapping[str, Tensor]
    library: Mapping[str, Tensor]


def build(folder: Path, name: str) -> Path:
    """The base step's folder of a new model in 16 bits."""
    family, settings = MODELS[name]
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    fill(model)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.to(torch.float16 if name == "half" else torch.bfloat16).save_pretrained(folder / "source")
    save_tokenizer(train_tokenizer(["a few words of a text"]), folder / "source")
    prepare({"source": "path", "path": str(folder / "source")}, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function of a model and settings of round to nearest that gives the variant's folder and its base's."""
    root = tmp_path_factory.mktemp("models")

    def make(model: str, settings: Mapping[str, object]) -> tuple[Path, Path]:
        base, out = root / model / "base", root / model / "-".join(map(str, settings.values()))
        if not base.is_dir():
            calibrated(build(root / model, model), root / model)
        if not out.is_dir():
            spec = {"sweep": "s", "method": "rtn", "settings": dict(settings), "seed": 0}
            compress(out, "v", base, None, root / model / "calibration", [], spec)
            assert failure(out) is None
        return out, base

    return make


@pytest.fixture(scope="module")
def read(variants: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Read]:
    """What others made of all variants, by model and name, in one process of its own."""
    root = tmp_path_factory.mktemp("exported")
    wanted = [(model, name) for model in ("llama", "qwen2") for name in (*WEIGHTS, *ROUNDED)]
    wanted += [("half", name) for name in ("fp8", "fp8 fp8_token")]
    folders = {(model, name): root / model / name.replace(" ", "-") for model, name in wanted}
    for (model, name), out in folders.items():
        variant, base = variants(model, {**WEIGHTS, **ROUNDED}[name])
        out.parent.mkdir(exist_ok=True)
        export(variant, out, "packed", base)
    save_file({"tokens": TOKENS}, root / "tokens.pt")
    arguments = [sys.executable, "-c", ALONE, str(root / "tokens.pt"), *map(str, folders.values())]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        key: Read(
            **load_file(folder / "logits.pt"),
            weights=load_file(folder / "weights.pt"),
            library=load_file(folder / "library.pt"),
        )
        for key, folder in folders.items()
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        values: Tensor = model(TOKENS, use_cache=False).logits
        return values


@pytest.mark.parametrize("model", ["llama", "qwen2", "half"])
def test_weights_are_those_of_the_variant_bit_for_bit(variants: Any, read: Any, model: str) -> None:
    for name, settings in {**WEIGHTS, **ROUNDED}.items():
        if (model, name) not in read:
            continue
        folder, base = variants(model, settings)
        ours = load(folder, base=base).state_dict()
        theirs = read[model, name]
        tied = {"lm_head.weight"} if model == "qwen2" else set()
        assert {*theirs.weights} | tied == {*ours}, ({*theirs.weights} | tied) ^ {*ours}
        for key, value in theirs.weights.items():
            assert torch.equal(value, ours[key].to(value.dtype)), (name, key)
        assert len(theirs.library) == 14
        for key, value in theirs.library.items():
            assert torch.equal(value, ours[key].to(value.dtype)), (name, key)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_logits_are_those_of_the_variant_bit_for_bit(variants: Any, read: Any, model: str, name: str) -> None:
    folder, base = variants(model, WEIGHTS[name])
    ours = load(folder, "stored", base=base)
    assert torch.equal(read[model, name].logits, logits(ours))


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_transformers_rounds_the_same_inputs_in_float32(variants: Any, read: Any, model: str, name: str) -> None:
    """In 16 bits it computes the scales of integers, FP8 and NVFP4 in 16 bits, too; powers of two are exact in any."""
    folder, base = variants(model, ROUNDED[name])
    # Weights that the library has rounded to 16 bits, and then computes with in 32.
    ours = load(folder, "bfloat16", base=base).float()
    assert torch.equal(read[model, name].wide, logits(ours))
    if name.startswith("mx"):
        assert torch.equal(read[model, name].logits, logits(load(folder, "stored", base=base)))


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        ("llama", {"format": "fp8_block", "inputs": "fp8_group"}, "inputs are rounded in groups of 128, .* has 96"),
        ("half", {"format": "nvfp4"}, "makes bfloat16 of nvfp4-pack-quantized, .* model is float16; --as dense"),
        ("half", {"format": "mxfp4"}, "makes bfloat16 of mxfp4-pack-quantized, .* model is float16; --as dense"),
        ("half", {"format": "mxfp8", "inputs": "mxfp8"}, "makes bfloat16 of mxfp8-quantized, .* model is float16$"),
        ("mixtral", {"format": "fp8_block"}, "reads FP8 with a scale a row or a layer, and not by block"),
        ("mixtral", {"format": "mxfp8"}, "reads FP8 with a scale a row or a layer, and not by group"),
        ("qwen3_moe", {"format": "fp8_block"}, "reads FP8 with a scale a row or a layer, and not by block"),
        ("qwen3_moe", {"format": "nvfp4"}, "reads no scale of an expert's layer over those of its groups"),
        ("mixtral", {"format": "fp8", "inputs": "fp8_token"}, "it does not round what experts read"),
    ],
)
def test_what_others_could_not_compute_is_refused_in_one_line(
    variants: Any, tmp_path: Path, model: str, settings: dict[str, object], reason: str
) -> None:
    folder, base = variants(model, settings)
    with pytest.raises(RefusedError, match=f"^transformers can't (load|compute with) it: .*{reason}.*$"):
        export(folder, tmp_path / "out", "packed", base, theoretical=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fp8", "fp8_tensor", "mxfp4"])
@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe"])
def test_experts_compute_what_dense_ones_do(variants: Any, tmp_path: Path, model: str, name: str) -> None:
    folder, base = variants(model, WEIGHTS[name])
    for layout in ("packed", "dense"):
        export(folder, tmp_path / layout, layout, base)
    packed, dense = (AutoModelForCausalLM.from_pretrained(tmp_path / layout) for layout in ("packed", "dense"))
    assert torch.equal(logits(packed), logits(dense))
    weights = packed.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in dense.state_dict().items())


@pytest.mark.parametrize("name", [*ROUNDED, "fp8_block fp8_group"])
def test_inputs_are_rounded_alike_in_every_way_to_compute(variants: Any, name: str) -> None:
    """Dense, as it is stored, and block by block; in one pass, and token by token with a cache as decoding does."""
    settings = {**ROUNDED, "fp8_block fp8_group": {"format": "fp8_block", "inputs": "fp8_group"}}[name]
    folder, base = variants("llama", settings)
    dense = load(folder, base=base)
    expected, steps = logits(dense), decoded(dense)
    with exact():
        assert not torch.equal(logits(dense), expected)
    stored = load(folder, as_stored=True, base=base)
    assert torch.equal(logits(stored), expected)
    assert torch.equal(decoded(stored), steps)
    torch.testing.assert_close(logits(load(folder, base=base, streamed=True)), expected, rtol=0, atol=1e-5)
    if not name.endswith("int8_tensor"):
        # A scale over all tokens depends on what is computed together; with other kinds a token has its own.
        assert (steps - expected[:, : steps.shape[1]]).abs().median() < 1e-4


def decoded(model: Any) -> Tensor:
    """Logits of the first tokens, a prompt of eight at once and then one at a time."""
    with torch.no_grad():
        first = model(TOKENS[:, :8], use_cache=True)
        found, cache = [first.logits], first.past_key_values
        for place in range(8, 12):
            step = model(TOKENS[:, place : place + 1], past_key_values=cache, use_cache=True)
            found.append(step.logits)
            cache = step.past_key_values
        return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", [*WEIGHTS, "nvfp4 nvfp4", "fp8_tensor fp8_static", "int8 int8_static"])
def test_an_exported_variant_judged_as_a_published_file_is_the_variant(
    variants: Any, tmp_path: Path, name: str
) -> None:
    """Up to the library's rounding of weights to 16 bits, which powers of two as scales do not need."""
    folder, base = variants("llama", {**WEIGHTS, **ROUNDED}[name])
    export(folder, tmp_path / "exported", "packed", base)
    spec = {"sweep": "s", "method": "external", "settings": {"files": str(tmp_path / "exported")}, "seed": 0}
    compress(tmp_path / "published", "v", base, None, None, [], spec)
    assert failure(tmp_path / "published") is None
    ours = load(folder, "bfloat16", base=base).float()
    published = load(tmp_path / "published", base=base)
    assert torch.equal(logits(published), logits(ours))
    if name.startswith("mx"):
        assert torch.equal(logits(published), logits(load(folder, base=base)))
