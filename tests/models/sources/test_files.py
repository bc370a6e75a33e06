"""What a checkpoint folder's files say before a tensor is read."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models.sources.files import (
    PIECE,
    architecture,
    as_plain_utf8,
    contents,
    copy_weights,
    header,
    read_json,
    shorten_list,
    size_of,
    tensors,
    weight_map,
)
from hemorrhage.runtime.step import InputError
from tests.models.sources.folders import META, POINTER, llama, settings, sharded


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return llama(tiny, tmp_path / "model")


def test_a_header_says_where_the_numbers_of_every_tensor_lie(folder: Path) -> None:
    file = folder / "model.safetensors"
    state, found = load_file(file), header(file)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: tuple(t.shape) for name, t in state.items()}
    content = file.read_bytes()
    for name, tensor in found.items():
        assert tensor.dtype == "BF16"
        assert content[tensor.begin : tensor.end] == state[name].view(torch.uint8).numpy().tobytes()


def test_a_header_whose_shape_and_bytes_disagree_is_none(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    changed = content.replace(b'"shape":[104,80]', b'"shape":[105,80]')
    assert changed != content
    file.write_bytes(changed)
    with pytest.raises(InputError, match=r"model\.safetensors is not a safetensors file"):
        header(file)


def header_of(entries: dict[str, object], size: int) -> bytes:
    """A safetensors file of ``size`` bytes of numbers."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(begin: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "is damaged: b overlaps another tensor"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "is damaged: b overlaps another tensor"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, "is damaged: b comes after bytes of no tensor"),
        ({"a": entry(4, 12)}, "is damaged: a comes after bytes of no tensor"),
        ({"a": entry(-4, 12)}, "is not a safetensors file"),
        ({"a": entry(0, 12, [-3, -4])}, "is not a safetensors file"),
    ],
)
def test_tensors_that_overlap_or_leave_gaps_are_damage(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_of(entries, 8 if "b" in entries and entries["b"] == entry(0, 8) else 12))
    with pytest.raises(InputError, match=rf"model\.safetensors {message}"):
        header(file)


def test_a_name_that_is_there_twice_leaves_a_gap(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    first, second = json.dumps({"a": entry(0, 4)})[1:-1], json.dumps({"a": entry(4, 8)})[1:-1]
    text = f"{{{first}, {second}}}".encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError, match="is damaged: a comes after bytes of no tensor"):
        header(file)


def test_a_tensor_in_two_files_is_one_line(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors has .*, and so has model\.safetensors"):
        tensors((folder / "model.safetensors", folder / "other.safetensors"))


def test_the_index_decides_over_model_safetensors(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent)
    sharded(folder)
    shutil.copy(folder.parent / "model.safetensors", folder)
    (folder / "README.md").write_text("x")
    (folder / "notes").mkdir()
    found = contents(folder)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [file.name for file in found.weights] == shards
    assert found.left == ("model.safetensors", "notes/")
    assert found.adopted == (*found.weights, *found.others)


def test_weights_are_copied_without_the_named_tensors(tmp_path: Path) -> None:
    there, out = tmp_path / "there", tmp_path / "out"
    there.mkdir()
    out.mkdir()
    # More bytes than are copied at once, and types of other sizes around them.
    state = {
        "a": torch.arange(3, dtype=torch.int8),
        "large": torch.arange(PIECE // 4 + 5, dtype=torch.float32),
        "z": torch.ones(2, 3, dtype=torch.bfloat16),
    }
    save_file(state, there / "model.safetensors", META)
    index = there / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "model.safetensors")}))
    copy_weights((there / "model.safetensors",), index, out, {"a"})
    found = load_file(out / "model.safetensors")
    assert found.keys() == {"large", "z"}
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    assert weight_map(out / index.name) == dict.fromkeys(("large", "z"), "model.safetensors")


def test_a_file_that_needs_nothing_dropped_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy_weights((folder / "model.safetensors",), folder / "model.safetensors.index.json", tmp_path, {"absent"})
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_size_is_that_of_the_file_and_not_of_what_stands_for_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"four")
    assert size_of(file) == 4
    file.write_text(POINTER.format(digit="0" * 64, size=9))
    with pytest.raises(InputError, match="is a pointer of Git LFS"):
        size_of(file)
    with pytest.raises(InputError, match="is missing"):
        size_of(tmp_path / "absent")


def test_text_is_read_in_any_encoding_and_made_plain(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes('{"name": "é"}'.encode(encoding))
        assert read_json(file) == {"name": "é"}
        assert as_plain_utf8(file) == (None if encoding == "utf-8" else '{"name": "é"}'.encode())
    merges = tmp_path / "merges.txt"
    merges.write_bytes(b"\xef\xbb\xbfa b")
    assert as_plain_utf8(merges) == b"a b"


def test_json_that_is_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 200_000)
    with pytest.raises(InputError, match="broken JSON: it is nested too deep"):
        read_json(file)


def test_a_list_is_cut_after_four() -> None:
    assert shorten_list(["a", "b", "c", "d"]) == "a, b, c, d"
    assert shorten_list(["a", "b", "c", "d", "e"]) == "a, b, c, d and 1 more"


def test_an_own_name_of_a_size_does_not_hide_the_usual_one(folder: Path) -> None:
    settings(folder / "config.json", n_embd=7)
    assert architecture(folder)["hidden_size"] == 80


@pytest.mark.parametrize("kind", ["gpt2", "nested"])
def test_sizes_are_known_under_the_names_of_other_families(tmp_path: Path, kind: str) -> None:
    own = {"n_embd": 80, "n_layer": 3, "n_head": 5, "n_positions": 200}
    usual = {"hidden_size": 80, "num_hidden_layers": 3, "num_attention_heads": 5, "max_position_embeddings": 200}
    said = {"model_type": "gpt2", **own} if kind == "gpt2" else {"model_type": "gemma3", "text_config": usual}
    (tmp_path / "config.json").write_text(json.dumps(said))
    found = architecture(tmp_path)
    assert {key: found[key] for key in usual} == usual
    assert found["model_type"] == said["model_type"]
