"""Small model folders as the hub has them, for the tests of sources: bfloat16, odd sizes, on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

META = {"format": "pt"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{digit}\nsize {size}\n"


def llama(tiny: Path, out: Path, **settings: Any) -> Path:
    """A Llama of random bfloat16 weights with ``tiny``'s tokenizer: width 80, one key-value head, heads of 24."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=80,
        intermediate_size=104,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=200,
        attention_bias=True,
        bos_token_id=1,
        eos_token_id=2,
        **{"tie_word_embeddings": True, **settings},
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, out / name)
    return out


def folder_with(where: Path, config: dict[str, object], *files: str) -> Path:
    """A folder with that config.json and empty files."""
    where.mkdir()
    (where / "config.json").write_text(json.dumps(config))
    for name in files:
        (where / name).write_bytes(b"")
    return where


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Store other tensors in model.safetensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", META)


def settings(file: Path, **values: object) -> None:
    """Set values in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    """Split model.safetensors in two with an index; returns the tensors."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, META)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state
