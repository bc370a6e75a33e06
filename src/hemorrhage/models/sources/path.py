"""A Hugging Face folder on this machine: its files, copied.

A hard link would save the space, but writing into the original would then change the base under its
address, and DVC would make the original read-only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

NOTE = "The base is a folder of this machine."

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What a checkpoint folder holds beside documentation: weights, settings, template, vocabularies."""


def fetch(spec: dict[str, Any], out: Path) -> str:
    """Put the checkpoint of the folder ``spec["path"]`` into ``out``; returns the note on what it is.

    Raises ValueError where the folder is no plain safetensors checkpoint.
    """
    folder = Path(spec["path"])
    problem = refusal(folder)
    if problem:
        raise ValueError(f"model.path: {problem}")
    adopt(folder, out)
    return NOTE


def refusal(folder: Path) -> str | None:
    """Why a folder can't be the base model, in one line, or None."""
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json; a Hugging Face folder is needed"
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8")):
            return f"{file} asks for code of its own (auto_map), which is never run"
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return f"{folder} is quantized already; the base has to be a plain checkpoint"
    if not any(folder.glob("*.safetensors")):
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        other = "only pickled weights (.bin); convert them to safetensors" if pickles else "no *.safetensors"
        return f"{folder} holds {other}"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json)"
    return None


def adopt(folder: Path, out: Path) -> None:
    """Copy the checkpoint's files from ``folder`` into ``out``; tokenizer.json is made if absent."""
    for pattern in WANTED:
        for file in sorted(folder.glob(pattern)):
            shutil.copyfile(file, out / file.name)
    if not (out / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=False).save_pretrained(out)
