"""The files of a checkpoint or GGUF file that somebody else published: which are read, and what rules them out.

Nothing heavy is imported: params.yaml is checked with this at every start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hemorrhage.models.sources.files import (
    INDEX,
    NAMES,
    WEIGHTS,
    exists,
    header,
    read_json,
    refusal_of,
    shorten_list,
    size_of,
    weight_map,
)
from hemorrhage.runtime.address import fingerprint
from hemorrhage.runtime.step import InputError

QUANTIZATION = (
    "quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json", "quanto_qmap.json",
)  # fmt: skip
"""Files of AutoGPTQ, AutoAWQ, others, ModelOpt and quanto that say how the weights are stored, next to config.json."""

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

ADAPTER_PICKLED = "adapter_model.bin"

GGUF_MAGIC = b"GGUF"

SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""How the files of a GGUF model of several files are named."""


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file."""
    return path.suffix.lower() == ".gguf"


def is_adapter(path: Path) -> bool:
    """Return whether a folder holds a LoRA adapter and no model."""
    return exists(path / ADAPTER) and not exists(path / "config.json")


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that are read of a folder, a GGUF file or another file, weights first.

    Raises InputError, one line that names the file, where the weights can't be found.
    """
    if is_gguf(path):
        return shards(path)
    if path.is_file():
        return (path,)
    if is_adapter(path):
        if not exists(path / ADAPTER_WEIGHTS) and exists(path / ADAPTER_PICKLED):
            raise InputError(f"{path / ADAPTER_PICKLED} is pickled, which is never read; convert it to safetensors")
        return tuple(path / name for name in (ADAPTER_WEIGHTS, ADAPTER))
    names = (*NAMES, *QUANTIZATION, INDEX)
    return (*weights_of(path), *(path / name for name in names if exists(path / name)))


def shards(path: Path) -> tuple[Path, ...]:
    """Return all files of a GGUF model, of which ``path`` is one. Raises InputError where one is missing."""
    match = SHARD.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match[3])
    files = tuple(path.with_name(f"{match[1]}-{index:05}-of-{match[3]}.gguf") for index in range(1, count + 1))
    missing = [file.name for file in files if not exists(file)]
    if missing:
        raise InputError(f"{path} is one of {count} files of a model, and {shorten_list(missing)} is missing")
    return files


def weights_of(folder: Path) -> tuple[Path, ...]:
    """Return a folder's safetensors files: those of the index, model.safetensors, else the only one there is."""
    if exists(folder / INDEX):
        return tuple(folder / name for name in sorted(set(weight_map(folder / INDEX).values())))
    if exists(folder / WEIGHTS):
        return (folder / WEIGHTS,)
    only = sorted(entry for entry in folder.iterdir() if entry.suffix == ".safetensors")
    if len(only) == 1:
        return tuple(only)
    if only:
        raise InputError(f"{folder} has {shorten_list([file.name for file in only])} and no {INDEX} that says which")
    for ends, what in (
        ((".gguf",), "GGUF files; name one of them"),
        ((".bin", ".pt", ".pth", ".ckpt"), "pickled weights, which are never read; convert them to safetensors"),
        ((".npz", ".msgpack", ".h5", ".onnx"), "weights of another program; convert them to safetensors"),
    ):
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(ends))
        if names:
            return _refuse(f"{folder} holds no *.safetensors, only {what}: {shorten_list(names)}")
    return _refuse(f"{folder} holds no *.safetensors")


def _refuse(line: str) -> tuple[Path, ...]:
    raise InputError(line)


def check(path: Path) -> None:
    """Raise InputError where nothing can be read of a folder or GGUF file, from the headers of its files."""
    if not path.exists():
        raise InputError(f"{path} is missing; a folder of safetensors or a GGUF file is needed")
    if path.is_file() and not is_gguf(path):
        raise InputError(f"{path} is neither a folder nor a GGUF file")
    if path.is_dir() and not exists(path / "config.json") and not exists(path / ADAPTER):
        raise InputError(f"{path} holds no config.json{_gguf_instead(path)}")
    for file in files_of(path):
        _check_file(file)
    if path.is_dir():
        _check_settings(path)


def _check_file(file: Path) -> None:
    size_of(file)
    if file.suffix == ".safetensors":
        header(file)
    elif file.suffix == ".json":
        read_json(file)
    elif is_gguf(file):
        with file.open("rb") as stream:
            if stream.read(4) != GGUF_MAGIC:
                raise InputError(f"{file} is not a GGUF file")


def _gguf_instead(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if is_gguf(entry))
    return f"; name one of its GGUF files: {shorten_list(names)}" if names else ""


def _check_settings(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", ADAPTER):
        settings = read_json(folder / name) if exists(folder / name) else {}
        if not isinstance(settings, dict):
            raise InputError(f"{folder / name} is not a JSON object")
        if name == "config.json" and "auto_map" in settings and "model_type" not in settings:
            raise InputError(f"{folder / name} asks to run its own code (auto_map), which is never done")


def refusal(path: Path) -> str | None:
    """Return why a folder or GGUF file can't be read, in one line, or None."""
    return refusal_of(check, path)


def digest(path: Path, memory: Path) -> str:
    """Return the digest of the files that are read; ``memory`` as in hemorrhage.runtime.address."""
    folder = path.parent if is_gguf(path) or path.is_file() else path
    return fingerprint(folder, memory, files_of(path))


def quantization_of(folder: Path) -> Mapping[str, Any]:
    """Return how a folder's weights are stored: the entry of config.json, else of a file next to it, else empty.

    ``quant_method`` is in lower case, and there where the publisher's program left it out.
    """
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    entries = [config, text if isinstance(text, dict) else {}]
    for entry in entries:
        for key, method in _METHODS_OF_KEYS.items():
            if isinstance(entry.get(key), dict) and entry[key]:
                # mlx-lm writes its entry a second time under the name that others use.
                twice = entry[key] == entry.get(MLX)
                return _with_method(entry[key], "mlx" if twice else method)
    for name in QUANTIZATION:
        if exists(folder / name):
            content = read_json(folder / name)
            content = content.get("quantization", content)
            return _with_method(content, _METHODS_OF_FILES[name])
    return {}


MLX = "quantization"

_METHODS_OF_KEYS = {"quantization_config": "", "compression_config": "compressed-tensors", MLX: "mlx"}
"""Key of config.json -> ``quant_method`` of an entry that does not say it."""

_METHODS_OF_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "",
    "hf_quant_config.json": "modelopt",
    "quanto_qmap.json": "quanto",
}


def _with_method(entry: Mapping[str, Any], default: str) -> Mapping[str, Any]:
    is_older_bitsandbytes = "load_in_4bit" in entry or "load_in_8bit" in entry
    method = entry.get("quant_method") or ("bitsandbytes" if is_older_bitsandbytes else default)
    return {**entry, "quant_method": str(method).lower()}


def fetch(repository: str, revision: str, file: str | None) -> Path:
    """Download a published model into the cache of the hub's library; return its folder or GGUF file.

    Raises InputError where the hub does not have it, ConnectionError where the network stays lost.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from hemorrhage.runtime.network import fetch_persistently

    wanted = (
        [file, SHARD.sub(r"\1-*-of-\3.gguf", file)]
        if file
        else [*NAMES, *QUANTIZATION, INDEX, ADAPTER, "*.safetensors"]
    )
    # The steps forbid network access; this one is asked for. The library reads the variable when imported.
    os.environ["HF_HUB_OFFLINE"] = "0"
    try:
        folder = fetch_persistently(
            repository,
            lambda: snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]),
        )
    except HfHubHTTPError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise InputError(f"{repository} at {revision[:8]} can't be downloaded: {reason}") from error
    return Path(folder, file) if file else Path(folder)
