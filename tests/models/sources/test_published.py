"""Which files of a published model are read, and what of them says how they are stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hemorrhage.models.sources import published
from hemorrhage.runtime.step import InputError
from tests.models.sources.folders import folder_with


def test_the_only_safetensors_file_is_the_model_and_two_are_not(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", {}, "gptq_model-4bit-128g.safetensors", "quantize_config.json", "notes.txt")
    names = [file.name for file in published.files_of(folder)]
    assert names == ["gptq_model-4bit-128g.safetensors", "config.json", "quantize_config.json"]
    (folder / "other.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no model\.safetensors\.index\.json that says which"):
        published.files_of(folder)


def test_all_files_of_a_gguf_model_are_read(tmp_path: Path) -> None:
    names = [f"m-{index:05}-of-00003.gguf" for index in (1, 2, 3)]
    for name in names:
        (tmp_path / name).write_bytes(b"GGUF")
    assert [file.name for file in published.files_of(tmp_path / names[1])] == names
    (tmp_path / names[2]).unlink()
    with pytest.raises(InputError, match=r"m-00003-of-00003\.gguf is missing"):
        published.files_of(tmp_path / names[0])


@pytest.mark.parametrize(
    ("config", "file", "content", "method"),
    [
        ({"quantization_config": {"quant_method": "GPTQ", "bits": 4}}, "", {}, "gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "", {}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "", {}, "bitsandbytes"),
        ({"compression_config": {"format": "x"}}, "", {}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "", {}, "awq"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "", {}, "mlx"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "", {}, "mlx"),
        ({}, "quantize_config.json", {"bits": 4}, "gptq"),
        ({}, "quant_config.json", {"w_bit": 4}, "awq"),
        ({}, "quanto_qmap.json", {"model.layers.0.mlp.up_proj": {"weights": "qint8"}}, "quanto"),
        ({}, "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
    ],
)
def test_every_generation_of_markers_names_its_method(
    tmp_path: Path, config: dict[str, object], file: str, content: dict[str, object], method: str
) -> None:
    folder = folder_with(tmp_path / "m", {"model_type": "llama", **config})
    if file:
        (folder / file).write_text(json.dumps(content))
    assert published.quantization_of(folder)["quant_method"] == method


def test_a_plain_folder_is_stored_in_no_format(tmp_path: Path) -> None:
    assert published.quantization_of(folder_with(tmp_path / "m", {"model_type": "llama"})) == {}


def test_the_digest_is_that_of_what_is_read(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", {"model_type": "llama"}, "model.safetensors")
    before = published.digest(folder, tmp_path / "memory.json")
    (folder / "README.md").write_text("x")
    assert published.digest(folder, tmp_path / "memory.json") == before
    (folder / "model.safetensors").write_bytes(b"x")
    assert published.digest(folder, tmp_path / "memory.json") != before
