"""A folder is a base whose files are whole and are its architecture's, or it is refused in one line before any work."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.sources.path import digest_of_adopted, refusal
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from tests.models.sources.folders import META, POINTER, folder_with, llama, settings, sharded, weights

State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return llama(tiny, tmp_path / "model")


def prepared(folder: Path) -> Path:
    out = folder.with_name("base")
    shutil.rmtree(out, ignore_errors=True)
    prepare({"source": "path", "path": str(folder)}, out)
    return out


def refused(folder: Path) -> str:
    """The line of the base step, which left nothing."""
    with pytest.raises(InputError) as error:
        prepared(folder)
    assert "\n" not in str(error.value)
    assert not list(folder.parent.glob("base*"))
    return str(error.value)


def test_whole_folder_is_adopted_as_it_is(folder: Path) -> None:
    base = prepared(folder)
    for file in folder.iterdir():
        assert (base / file.name).read_bytes() == file.read_bytes()
    manifest = read_manifest(base)
    assert manifest["note"] == "The base is a folder of this machine."
    assert (manifest["leading"], manifest["vocabulary"], manifest["quantized_before"]) == ([1], 512, None)


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ({}, ["pytorch_model.bin", "tokenizer.json"], "only pickled weights"),
        ({}, ["tokenizer.json"], r"no \*\.safetensors"),
        ({}, ["model.safetensors"], "no tokenizer"),
        ({"auto_map": {"AutoModel": "x.Y"}}, ["model.safetensors", "tokenizer.json"], "asks to run its own code"),
        ({"quantization_config": {}}, ["model.safetensors", "tokenizer.json"], "quantized already"),
    ],
)
def test_folders_that_cannot_be_the_base_are_refused(
    tmp_path: Path, config: dict[str, object], files: list[str], reason: str
) -> None:
    folder = folder_with(tmp_path / "folder", config, *files)
    with pytest.raises(ValueError, match=rf"model\.path: .*{reason}"):
        prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_what_a_model_needs_is_copied_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    for name in ("pytorch_model.bin", "modeling_own.py", "training.log"):
        (source / name).write_bytes(b"x")
    prepare({"source": "path", "path": str(source)}, out)
    there = {file.name for file in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= there
    assert not there & {"pytorch_model.bin", "modeling_own.py", "training.log"}
    assert (out / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


# Weights that are not those of the architecture.


def without_layer(state: State) -> State:
    return {name: value for name, value in state.items() if ".layers.2.mlp" not in name}


def prefixed(state: State) -> State:
    return {f"_orig_mod.{name}": value for name, value in state.items()}


def reshaped(state: State) -> State:
    return {**state, "model.layers.1.mlp.up_proj.weight": torch.zeros(96, 80, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without_layer, "lacks model.layers.2.mlp.down_proj.weight and 2 more tensors that config.json's architecture"),
        (
            prefixed,
            "has _orig_mod.model.embed_tokens.weight and 40 more tensors under names that begin with '_orig_mod.'",
        ),
        (reshaped, "has model.layers.1.mlp.up_proj.weight as [96, 80], config.json's architecture as [104, 80]"),
    ],
)
def test_weights_of_another_architecture_are_one_line(
    folder: Path, change: Callable[[State], State], line: str
) -> None:
    weights(folder, change)
    assert refusal(folder) is None, "headers that are whole are the plan's business alone"
    assert line in refused(folder)


def test_layers_left_over_and_a_missing_head_are_one_line(folder: Path) -> None:
    settings(folder / "config.json", num_hidden_layers=2)
    assert "has model.layers.2.input_layernorm.weight and 12 more tensors that" in refused(folder)
    settings(folder / "config.json", num_hidden_layers=3, tie_word_embeddings=False)
    assert refused(folder).endswith("lacks lm_head.weight that config.json's architecture has")


def test_unknown_architectures_and_settings_are_one_line(folder: Path) -> None:
    for values, line in (
        ({"model_type": "llama9"}, "the model_type 'llama9' is unknown to transformers"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "t5"}, "is not a causal language model"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
    ):
        settings(folder / "config.json", **values)
        assert line in refused(folder)


def test_a_head_that_is_stored_twice_counts_once(folder: Path) -> None:
    once = prepared(folder)
    manifest, model = read_manifest(once), (once / "model.safetensors").read_bytes()
    weights(folder, lambda state: {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()})
    twice = prepared(folder)
    assert read_manifest(twice)["note"].endswith(
        "lm_head.weight is stored next to model.embed_tokens.weight, and the two are one tensor: it counts once."
    )
    assert {key: read_manifest(twice)[key] for key in ("effective_bits", "parameters", "tensors")} == {
        key: manifest[key] for key in ("effective_bits", "parameters", "tensors")
    }
    assert load_file(twice / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys() - {
        "lm_head.weight"
    }
    assert abs((twice / "model.safetensors").stat().st_size - len(model)) < 64

    weights(folder, lambda state: {**state, "lm_head.weight": 2 * state["model.embed_tokens.weight"]})
    assert "lm_head.weight and model.embed_tokens.weight with different numbers" in refused(folder)


def test_buffers_that_the_model_makes_are_left_behind(folder: Path) -> None:
    sharded(folder)
    first = folder / "model-00001-of-00002.safetensors"
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**load_file(first), name: torch.ones(12)}, first, META)
    index = folder / "model.safetensors.index.json"
    settings(index, weight_map={**json.loads(index.read_text())["weight_map"], name: first.name})
    base = prepared(folder)
    assert f"the model computes it: {name}." in read_manifest(base)["note"]
    assert name not in load_file(base / first.name)
    assert name not in json.loads((base / index.name).read_text())["weight_map"]
    assert name not in read_manifest(base)["tensors"]


# Several weight files in one folder.


def test_the_weights_are_those_that_the_index_names(folder: Path) -> None:
    alone = prepared(folder)
    facts = {key: read_manifest(alone)[key] for key in ("effective_bits", "parameters", "tensors", "sparsity")}
    tokens = torch.arange(3, 60)[None]
    with torch.inference_mode():
        logits = load(alone)(tokens).logits
    state = sharded(folder)
    save_file({f"other.{name}": value for name, value in state.items()}, folder / "consolidated.safetensors", META)
    save_file({name: 2 * value for name, value in state.items()}, folder / "model_ema.safetensors", META)
    for name in ("optimizer.pt", "pytorch_model.bin", "README.md", ".DS_Store", "training_args.bin", "LICENSE.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "checkpoint-500").mkdir()
    base = prepared(folder)
    assert {key: read_manifest(base)[key] for key in facts} == facts
    with torch.inference_mode():
        assert torch.equal(load(base)(tokens).logits, logits)
    assert read_manifest(base)["note"].endswith(
        "Left out, since it does not belong to the model: checkpoint-500/, consolidated.safetensors, "
        "model_ema.safetensors, optimizer.pt and 2 more."
    )
    assert {file.name for file in base.iterdir()} == {
        "config.json", "generation_config.json", "manifest.json", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip


def test_model_safetensors_alone_where_there_is_no_index(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: 2 * value for name, value in state.items()}, folder / "model_ema.safetensors", META)
    base = prepared(folder)
    assert not (base / "model_ema.safetensors").exists()
    (folder / "model.safetensors").unlink()
    assert refused(folder).endswith(
        "holds no model.safetensors and no index of its weights, only model_ema.safetensors"
    )


def test_identity_is_of_what_is_adopted(folder: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    before = digest_of_adopted(folder, memory)
    for name in (".git", ".cache/huggingface/download"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x").write_text("x")
    for name in ("README.md", ".DS_Store", "optimizer.pt", "consolidated.safetensors", "trainer_state.json"):
        (folder / name).write_text("x")
    assert digest_of_adopted(folder, memory) == before
    settings(folder / "config.json", rope_theta=9999.0)
    assert digest_of_adopted(folder, memory) != before


# Files that are not what their names say.


def pointer(file: Path) -> None:
    file.write_text(POINTER.format(digit="0" * 64, size=1044992))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"12")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def garbled(file: Path) -> None:
    file.write_bytes(b"\x00\xff" * 500)


def broken(file: Path) -> None:
    file.write_text(file.read_text().rstrip().rstrip("}") + ",\n}")


def latin(file: Path) -> None:
    file.write_bytes(b'{"name": "caf\xe9"}')


def listing(file: Path) -> None:
    file.write_text("[]")


def gone(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        (
            "model.safetensors",
            pointer,
            "is a pointer of Git LFS and not the file itself; `git lfs pull` in its folder gets it",
        ),
        ("model.safetensors", cut, "is truncated: it has "),
        ("model.safetensors", cut_in_header, "is truncated: it has 200 bytes, its header alone "),
        ("model.safetensors", longer, "is damaged: it has "),
        ("model.safetensors", emptied, "is empty"),
        ("model.safetensors", garbled, "is not a safetensors file"),
        ("model.safetensors", gone, "is a broken link"),
        ("config.json", pointer, "is a pointer of Git LFS"),
        ("config.json", broken, "is broken JSON: "),
        ("config.json", latin, "is not in UTF-8; save it as UTF-8"),
        ("config.json", listing, "is not a JSON object"),
        ("config.json", gone, "is a broken link"),
        ("generation_config.json", broken, "is broken JSON: "),
        ("tokenizer_config.json", broken, "is broken JSON: "),
        ("tokenizer.json", pointer, "is a pointer of Git LFS"),
        ("tokenizer.json", broken, "is broken JSON: "),
        ("tokenizer.json", listing, "is not a tokenizer of the tokenizers library"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line_that_names_it(
    folder: Path, name: str, damage: Callable[[Path], None], line: str
) -> None:
    damage(folder / name)
    assert f"{folder / name} {line}" in str(refusal(folder)), "known when params.yaml is read"
    assert f"model.path: {folder / name} {line}" in refused(folder)


def test_a_shard_that_is_missing_and_an_index_that_leads_elsewhere_are_one_line(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").rename(folder / "other.safetensors")
    assert f"{folder / 'model-00002-of-00002.safetensors'} is missing" in refused(folder)
    index = folder / "model.safetensors.index.json"
    for wrong, line in (({"a": "../x.safetensors"}, "names '../x.safetensors'"), ({}, "has no weight_map")):
        settings(index, weight_map=wrong)
        assert line in refused(folder)
    broken(index)
    assert f"{index} is broken JSON" in refused(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read_and_not_adopted(folder: Path, encoding: str) -> None:
    plain = prepared(folder)
    contents = {name: (plain / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    for name, content in contents.items():
        (folder / name).write_bytes(content.decode().encode(encoding))
    base = prepared(folder)
    assert {name: (base / name).read_bytes() for name in contents} == contents


def test_a_large_tokenizer_is_skimmed_first_and_read_by_the_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.models.sources.path.LARGE", 10)
    broken(folder / "tokenizer.json")
    assert refusal(folder) is None
    assert "tokenizer.json is broken JSON" in refused(folder)


# Tokens beyond the embedding.


def with_token(folder: Path, special: bool) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 512, "content": "<image>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": special}  # fmt: skip
    content["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("large", [False, True])
def test_a_token_beyond_the_embedding_is_one_line(folder: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr("hemorrhage.models.sources.path.LARGE", 10)
    with_token(folder, special=False)
    line = "has the token '<image>' with the id 512, beyond the 512 rows of the embedding"
    assert line in str(refusal(folder))
    assert line in refused(folder)


def test_a_special_token_beyond_the_embedding_is_none_that_a_text_becomes(folder: Path) -> None:
    with_token(folder, special=True)
    assert read_manifest(prepared(folder))["vocabulary"] == 512


# Beginnings of texts.


def test_a_config_that_names_another_beginning_than_the_tokenizer_gets_a_line(folder: Path) -> None:
    settings(folder / "config.json", bos_token_id=None)
    manifest = read_manifest(prepared(folder))
    assert manifest["leading"] == [1]
    assert "begins a text with token 1, config.json names None: the tokenizer's counts." in manifest["note"]


def test_reading_what_can_be_refused_imports_no_large_library(folder: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from hemorrhage.models.sources.path import refusal\n"
        f"assert refusal(Path({str(folder)!r})) is None\n"
        "print(*(set(sys.modules) & {'torch', 'transformers', 'tokenizers', 'numpy', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
