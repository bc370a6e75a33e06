"""Models that others published, through the step: bfloat16, odd sizes, from disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.study import params as config
from hemorrhage.tools.export import export
from tests.gguf_files import copy, tensors_of
from tests.models.formats.test_gguf_families_step import base_of
from tests.models.sources import folders
from tests.study.test_params import changed, parse


@pytest.fixture(scope="module")
def source(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.llama(tiny, tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def base(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    prepare({"source": "path", "path": str(source)}, out)
    return out


def published(source: Path, out: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    shutil.copytree(source, out)
    save_file(tensors, out / "model.safetensors", folders.META)
    folders.settings(out / "config.json", **settings)
    return out


def read(base: Path, files: Path, out: Path) -> Any:
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(files)}, "seed": 0}
    compress(out, "v", base, None, None, [], spec)
    return read_manifest(out)


def pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.where(value.abs() > value.abs().float().median(), value, 0) if "_proj.weight" in name else value
        for name, value in tensors.items()
    }


def test_a_pruned_folder_is_a_variant_with_its_own_tensors(source: Path, base: Path, tmp_path: Path) -> None:
    tensors = pruned(load_file(source / "model.safetensors"))
    manifest = read(base, published(source, tmp_path / "half pruned", tensors), tmp_path / "v")
    assert failure(tmp_path / "v") is None
    assert manifest["label"] == "half pruned"
    assert manifest["family"] == "published"
    assert manifest["storage"] == "bfloat16"
    assert manifest["lineage"] == {"verdict": "same", "compared": manifest["lineage"]["compared"], "differing": []}
    assert manifest["layer_bits"] == manifest["effective_bits"] == 16.0
    assert manifest["size_ratio"] == 1.0
    assert manifest["sparsity"] == pytest.approx(0.5, abs=0.01)
    state = load(tmp_path / "v", "stored", base=base).state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())


def test_a_file_of_another_base_is_named_by_the_tensor_that_differs(source: Path, base: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.post_attention_layernorm.weight"
    manifest = read(base, published(source, tmp_path / "p", {**tensors, name: tensors[name] * 1.1}), tmp_path / "v")
    assert manifest["lineage"]["verdict"] == "other"
    assert manifest["lineage"]["differing"] == [name]


def test_fewer_blocks_are_found_in_the_base(source: Path, base: Path, tmp_path: Path) -> None:
    def renumbered(name: str) -> str | None:
        index = re.search(r"layers\.(\d)", name)
        if index is None:
            return name
        left = {"0": "0", "2": "1"}.get(index[1])
        return left and name.replace(f"layers.{index[1]}", f"layers.{left}")

    generator = torch.Generator().manual_seed(1)
    tensors = load_file(source / "model.safetensors")
    for name, value in tensors.items():
        if "norm" in name:
            tensors[name] = (value + 0.1 * torch.randn(value.shape, generator=generator)).to(value.dtype)
    own = published(source, tmp_path / "own", tensors)
    prepare({"source": "path", "path": str(own)}, tmp_path / "base")
    left = {str(renumbered(name)): value for name, value in tensors.items() if renumbered(name)}
    manifest = read(tmp_path / "base", published(own, tmp_path / "p", left, num_hidden_layers=2), tmp_path / "v")
    assert manifest["blocks"] == [0, 2]
    assert manifest["layers"] == 2
    assert manifest["lineage"]["verdict"] == "same"


def test_padding_behind_the_vocabulary_is_cut(source: Path, base: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    name = "model.embed_tokens.weight"
    padded = {**tensors, name: torch.cat([tensors[name], torch.zeros(8, 80, dtype=torch.bfloat16)])}
    manifest = read(base, published(source, tmp_path / "p", padded, vocab_size=520), tmp_path / "v")
    assert manifest["notes"] == ["8 rows of padding behind the base's vocabulary of 512 were cut."]
    assert manifest["lineage"]["verdict"] == "same"
    assert manifest["changed"] == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k}, "lacks model.layers.1.mlp.up_proj.weig"),
        (lambda t: {**t, "model.layers.0.extra": t["model.norm.weight"]}, "has model.layers.0.extra that config.json"),
        (lambda t: {**t, "model.norm.weight": t["model.norm.weight"][:-1]}, "has model.norm.weight as [79]"),
    ],
)
def test_what_is_no_whole_model_is_one_line(source: Path, base: Path, tmp_path: Path, change: Any, line: str) -> None:
    tensors = {name: value.clone() for name, value in change(load_file(source / "model.safetensors")).items()}
    read(base, published(source, tmp_path / "p", tensors), tmp_path / "v")
    assert line in str(failure(tmp_path / "v"))


def sweep(*files: object) -> dict[str, Any]:
    return changed("compress", {"published": {"method": "external", "files": list(files)}})


def reduced(content: dict[str, Any]) -> dict[str, Any]:
    content["decode"]["variants"], content["mitigate"]["variants"] = [], []
    content["evaluate"]["diagnostics"]["ablate"] = []
    return content


def test_files_are_variants_named_by_their_files(source: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "Llama 3.2 GPTQ_4bit")
    hub = {"id": "org/Model-AWQ", "revision": "0" * 40}
    found = config.variants(parse(tmp_path, reduced(sweep(str(source), str(other), hub))))
    assert list(found) == ["published-llama", "published-llama-3.2-gptq_4bit", "published-model-awq"]
    assert {variant.settings.identity for variant in found.values()} == {"{}"}


def test_what_can_not_be_read_is_refused_with_params_yaml(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    for path, line in (
        (tmp_path / "none", "none is missing; a folder of safetensors or a GGUF file is needed"),
        (
            tmp_path / "bin",
            "only pickled weights, which are never read; convert them to safetensors: ",
        ),
    ):
        with pytest.raises(config.ConfigError, match=f"compress.published.files: .*{re.escape(line)}"):
            parse(tmp_path, reduced(sweep(str(path))))


def test_a_gguf_file_is_a_variant_with_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare({"source": "path", "path": str(base_of("mixtral", tmp_path / "source", monkeypatch))}, tmp_path / "base")
    spec = {"sweep": "s", "method": "gguf_types", "settings": {"type": "q4_k", "embeddings": True}, "seed": 0}
    compress(tmp_path / "made", "m", tmp_path / "base", None, None, [], spec)
    export(tmp_path / "made", tmp_path / "file.gguf", "gguf")
    manifest = read(tmp_path / "base", tmp_path / "file.gguf", tmp_path / "v")
    assert failure(tmp_path / "v") is None
    assert (manifest["label"], manifest["storage"], manifest["engine"]) == (
        "file",
        "GGUF, Q4_K_S",
        "llama.cpp b11549 (CPU or GPU)",
    )
    assert manifest["lineage"]["verdict"] == "same"
    assert manifest["notes"] == ["The file is called Q4_K_S; 100% of the weights of its blocks are Q5_0."]
    assert manifest["disk_bytes"] == (tmp_path / "file.gguf").stat().st_size
    assert manifest["layer_bits"] == read_manifest(tmp_path / "made")["layer_bits"]
    theirs, ours = (
        {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in GGUFReader(file).tensors}
        for file in (tmp_path / "file.gguf", tmp_path / "v" / "model.gguf")
    )
    assert ours == theirs


def test_a_gguf_file_of_16_bits_has_sixteen(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "file.gguf", "gguf")
    manifest = read(base, tmp_path / "file.gguf", tmp_path / "v")
    assert failure(tmp_path / "v") is None
    assert (manifest["storage"], manifest["layer_bits"], manifest["notes"]) == ("GGUF, BF16", 16, [])
    state, expected = (load(folder, base=base).state_dict() for folder in (tmp_path / "v", base))
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_gguf_file_of_another_base_is_named(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "file.gguf", "gguf")
    tensors = tensors_of(tmp_path / "file.gguf")
    tensors["blk.1.ffn_norm.weight"][0][:] *= 1.1
    manifest = read(base, copy(tmp_path / "file.gguf", tmp_path / "other.gguf", tensors=tensors), tmp_path / "v")
    assert manifest["lineage"]["verdict"] == "other"
    assert manifest["lineage"]["differing"] == ["model.layers.1.post_attention_layernorm.weight"]


def test_a_gguf_file_that_is_cut_is_one_line(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "file.gguf", "gguf")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "file.gguf").read_bytes()[:-1000])
    read(base, tmp_path / "cut.gguf", tmp_path / "v")
    assert "it is truncated" in str(failure(tmp_path / "v"))
