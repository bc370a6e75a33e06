"""Every method of the registry, through the whole compress step and back: what is written is what was meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers import LlamaConfig, LlamaForCausalLM

from hemorrhage.calibrate import gradients
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Method
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engines import STORED as STORAGES
from hemorrhage.models.engines import answer
from hemorrhage.models.formats.floats import FloatLinear
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.study.registry import METHODS
from tests.calibration import calibrated

FITTING = {
    "group_size": 4,
    "residual": 8,
    "budget": 12.0,
    "experts": 4,
    "top_k": 2,
    "overlap": 0.4,
    "protect_first": 1,
    "protect_last": 1,
    "samples": 2,
    "batch": 2,
    "steps": 2,
    "iterations": 3,
}
"""What the settings of an example are for a model of five blocks, 64 features and 172 channels, in little time."""


def fitting(method: Method, example: Mapping[str, Any]) -> dict[str, Any]:
    """An example for the tiny model; what it leaves out, gives as a word or implies by a format stays as it is."""
    if "format" in example:
        return {**example}
    changed: dict[str, Any] = {
        name: value
        for name, value in FITTING.items()
        if name in method.settings.model_fields
        and not isinstance(example.get(name), str)
        and not (name == "group_size" and "scale" in example)
        and (name in example or name not in ("residual", "samples", "top_k"))
    }
    if method.settings.model_fields.get("group_size") and not {"group_size", "scale"} & example.keys():
        default = method.settings.model_fields["group_size"].default
        changed["group_size"] = default if isinstance(default, str) else FITTING["group_size"]
    return {**example, **changed}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, fitting(method_of(name), example)) for name in METHODS for example in method_of(name).info.examples),
    ("rotation", {"bits": 4, "group_size": "channel", "transform": "quarot", "rounding": "gptq"}),
    ("width", {"removed": 0.3, "importance": "random", "protect_first": 0, "protect_last": 0}),
    ("depth", {"removed": 0.2, "order": "angular"}),
]
"""Every method with the settings of its examples, and some more."""

WHOLE_BLOCKS = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 2,
                "head_dim": 128}  # fmt: skip
"""Sizes of layers that every kernel takes."""

STORED = {
    "magnitude": 0.06,
    "wanda": 0.06,
    "gblm": 0.06,
    "sparsegpt": 0.6,
    "depth": 0.03,
    "llama_pro": 0.06,
    "depth_up_scaling": 0.03,
    "kv_cache": 0.03,
}
"""Method -> the most of a checkpoint's bytes that are stored: the rest is the base's."""

ON: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("gptq", {"bits": 4, "group_size": 4, "keep_zeros": True}, "wanda", {"sparsity": 0.5}),
    ("rtn", {"bits": 4, "group_size": 4, "keep_zeros": True}, "magnitude", {"sparsity": 0.5}),
    ("recovery", {"steps": 2, "batch": 2}, "depth", {"removed": 0.2, "order": "influence"}),
    ("recovery", {"steps": 2, "batch": 2}, "width", {"removed": 0.3, "protect_first": 1, "protect_last": 1}),
    ("routing", {"alteration": "top_k", "amount": 1}, "upcycling", {"noise": 0.1}),
    ("routing", {"alteration": "drop", "amount": 0.25, "choose": "usage"}, "upcycling", {"noise": 0.1}),
    ("expert_pruning", {"removed": 0.25}, "upcycling", {"noise": 0.1}),
    ("expert_pruning", {"removed": 0.5, "importance": "frequency", "merge": True}, "upcycling", {"noise": 0.1}),
    ("rtn", {"bits": 4, "group_size": 4}, "upcycling", {"noise": 0.1}),
    ("kv_cache", {"bits": 4, "group_size": 8}, "rtn", {"bits": 4, "group_size": 4}),
    ("svd", {"removed": 0.2}, "depth", {"removed": 0.2, "order": "influence"}),
]
"""A method with its settings, on another."""


@pytest.fixture(scope="module")
def statistics(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The calibration of the tiny model, and its gradients."""
    folder = tmp_path_factory.mktemp("methods")
    calibration = calibrated(tiny, folder)
    parts = []
    for part in ("loss", "local"):
        parts.append(folder / part)
        gradients.gradients(parts[-1], tiny, calibration, {"part": part})
    return calibration, parts


def made(
    out: Path, base: Path, statistics: tuple[Path, list[Path]], method: str, settings: dict[str, Any], on: Path | None
) -> dict[str, Any]:
    """Run the compress step, read its checkpoint back in the ordinary way, return the manifest."""
    spec = {"sweep": method, "method": method, "settings": settings, "seed": 0}
    compress(out, method, base, on, *statistics, {**spec, "on": on and "parent"})
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    assert "failure" not in manifest, manifest["failure"]
    verify(load(out, base=base), out)
    return manifest


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16 whose widths are multiples of 32, for formats with groups of their own."""
    config = LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=32, vocab_size=512, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide") / "base"
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_statistics(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return calibrated(wide, tmp_path_factory.mktemp("wide_statistics")), []


@pytest.mark.parametrize("form", ["fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_every_number_format_through_the_step(
    wide: Path, wide_statistics: tuple[Path, list[Path]], tmp_path: Path, method: str, form: str
) -> None:
    inputs = {"fp8": "fp8_token", "fp8_tensor": "fp8_static", "fp8_block": "fp8_group"}.get(form, form)
    manifest = made(tmp_path / "out", wide, wide_statistics, method, {"format": form, "inputs": inputs}, None)
    bits = {"fp8": 8.17, "fp8_tensor": 8.01, "fp8_block": 8.01, "nvfp4": 4.51, "mxfp4": 4.25, "mxfp8": 8.25}[form]
    assert manifest["layer_bits"] == pytest.approx(bits, abs=0.02)
    stored = formatted_layers(load(tmp_path / "out", as_stored=True, base=wide))
    assert {type(layer) for layer in stored.values()} == {FloatLinear}
    # The library reads the same numbers, but for its rounding to bfloat16.
    for name, layer in stored.items():
        assert layer.scheme is not None
        arguments = QuantizationArgs(**layer.scheme["weights"])
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=layer.scheme["format"])
        compressor = BaseCompressor.get_value_from_registry(layer.scheme["format"])
        theirs = compressor.decompress(layer.stored(), scheme)["weight"]
        torch.testing.assert_close(theirs.float(), layer.dense(), rtol=2**-8, atol=0)
        assert layer.dense().ne(0).any(), name


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "mxfp4", "mxfp8"])
def test_autoround_in_a_format_through_the_step(
    wide: Path, wide_statistics: tuple[Path, list[Path]], tmp_path: Path, form: str
) -> None:
    settings = {"format": form, "iterations": 3, "samples": 2, "batch": 2}
    made(tmp_path / "out", wide, wide_statistics, "autoround", settings, None)
    stored = formatted_layers(load(tmp_path / "out", as_stored=True, base=wide))
    assert {type(layer) for layer in stored.values()} == {FloatLinear}
    if form == "nvfp4":
        totals = [stored[f"model.layers.0.mlp.{name}_proj"].stored()["weight_global_scale"] for name in ("gate", "up")]
        assert torch.equal(*totals)


@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_method_through_the_step(
    tiny: Path, statistics: tuple[Path, list[Path]], tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    problem = method_of(method).settings.model_validate(settings).check(json.loads((tiny / "config.json").read_text()))
    if problem and "format" in settings:
        return
    if problem:
        assert method in {name for name, *_ in ON}, problem
        return
    manifest = made(tmp_path / "out", tiny, statistics, method, settings, None)
    assert 0 < manifest["layer_bits"] <= 33
    assert manifest["effective_bits"] > 0
    assert manifest["disk_bytes"] >= 0.9 * manifest["parameters"] * 2 / 8
    # What says where the rest is counts, too.
    assert manifest["stored_bytes"] <= STORED.get(method, 1.02) * manifest["disk_bytes"]
    storages = method_of(method).info.storage
    # Of rounded caches engines load some.
    loads = {True, False} if "kv_cache" in storages else {bool(answer(STORAGES[each]).loads) for each in storages}
    # Of the format: kernels for blocks of 128 take no layers as narrow as these.
    config = {**json.loads((tmp_path / "out/config.json").read_text()), **WHOLE_BLOCKS}
    assert bool(answer(config).loads) in loads


@pytest.mark.parametrize(("method", "settings", "before", "first"), ON)
def test_a_method_on_another(
    tiny: Path,
    statistics: tuple[Path, list[Path]],
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    before: str,
    first: dict[str, Any],
) -> None:
    parent = made(tmp_path / "parent", tiny, statistics, before, first, None)
    manifest = made(tmp_path / "out", tiny, statistics, method, settings, tmp_path / "parent")
    assert manifest["on"] == "parent"
    assert manifest["curve"].endswith("on parent")
    if settings.get("keep_zeros"):
        # Every zero is still one, more may have been rounded to it, and the mask is counted.
        assert manifest["sparsity"] >= parent["sparsity"]
        assert manifest["mask_bits"] == 1
    if method == "recovery":
        names = set(Weights(tmp_path / "out", tiny).names())
        assert names == set(Weights(tmp_path / "parent", tiny).names())
