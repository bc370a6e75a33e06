"""A Hugging Face folder on this machine: its files, copied.

A hard link would save the space, but writing into the original would then change the base under its
address, and DVC would make the original read-only.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from hemorrhage.models.sources.files import (
    INDEX,
    TOKENIZERS,
    WEIGHTS,
    Contents,
    architecture,
    as_plain_utf8,
    contents,
    copy_weights,
    exists,
    read_json,
    refusal_of,
    shorten_list,
    size_of,
    tensors,
)
from hemorrhage.models.sources.markers import marker
from hemorrhage.models.sources.origin import Origin, Spec
from hemorrhage.runtime.address import fingerprint
from hemorrhage.runtime.step import InputError

NOTE = "The base is a folder of this machine."

LARGE = 2**22
"""Bytes of a tokenizer.json that takes longer to read than all else that params.yaml is checked for."""

log = logging.getLogger(__name__)


def fetch(spec: Spec, out: Path) -> Origin:
    """Put the checkpoint of the folder ``spec["path"]`` into ``out``; return what it is.

    Raises InputError where the folder is no plain safetensors checkpoint whose tensors are those of its architecture.
    """
    try:
        return Origin(f"{NOTE}{adopt(Path(spec['path']), out)}")
    except InputError as problem:
        raise InputError(f"model.path: {problem}") from None


def refusal(folder: Path) -> str | None:
    """Return why a folder can't be the base model, in one line, or None, from what needs no library."""
    return refusal_of(check, folder)


def digest_of_adopted(folder: Path, memory: Path) -> str:
    """Return the digest of the files that are adopted of a folder; ``memory`` as in hemorrhage.runtime.address."""
    return fingerprint(folder, memory, contents(folder).adopted)


def check(folder: Path, thorough: bool = False) -> None:
    """Raise InputError where a folder can't be the base model; not ``thorough``, a large tokenizer is only skimmed."""
    config = check_settings(folder)
    files = contents(folder)
    if not files.weights:
        raise InputError(f"{folder} holds {_instead(files)}")
    if not any(exists(folder / name) for name in TOKENIZERS):
        raise InputError(f"{folder} holds no tokenizer ({', '.join(TOKENIZERS)})")
    stored = tensors(files.weights)
    marked = marker(config, (), {name: tensor.dtype for name, tensor in stored.items()})
    if marked:
        raise InputError(_quantized(folder, marked))
    for file in files.others:
        if file.suffix == ".json" and file.name != "tokenizer.json":
            read_json(file)
    if exists(folder / "tokenizer.json"):
        _check_tokenizer(folder / "tokenizer.json", thorough)


def check_settings(folder: Path) -> Mapping[str, Any]:
    """Return the folder's config.json.

    Raises InputError where there is none that can be read, and where the settings rule out that it is the base model.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} holds no config.json; it is {'a file' if folder.is_file() else 'missing'}")
    file = folder / "config.json"
    if not exists(file):
        if exists(folder / "adapter_config.json"):
            raise InputError(f"{folder} is an adapter without its model; merge the two and name the result")
        raise InputError(f"{folder} holds no config.json; a Hugging Face folder is needed")
    config: Mapping[str, Any] = read_json(file)
    for name in ("config.json", "tokenizer_config.json"):
        settings = read_json(folder / name) if exists(folder / name) else {}
        if not isinstance(settings, dict):
            raise InputError(f"{folder / name} is not a JSON object")
        if "auto_map" in settings:
            raise InputError(f"{folder / name} asks to run its own code (auto_map), which is never done")
    marked = marker(config, (entry.name for entry in folder.iterdir()), {})
    if marked:
        raise InputError(_quantized(folder, marked))
    return config


def _quantized(folder: Path, marked: str) -> str:
    return (
        f"{folder} is quantized already ({marked}); the base has to be a plain checkpoint of 16 or 32 bits: "
        "name the model that it was made from, and `hemorrhage judge` this one beside it"
    )


def _instead(files: Contents) -> str:
    """Return what a folder holds that has neither an index of its weights nor model.safetensors."""
    for ends, what in (
        ((".safetensors",), f"no {WEIGHTS} and no index of its weights, only"),
        ((".gguf",), "a GGUF file, which is no Hugging Face folder:"),
        ((".bin", ".pt", ".pth", ".ckpt"), "only pickled weights (.bin); convert them to safetensors:"),
    ):
        names = [name for name in files.left if name.endswith(ends) and not name.startswith(("adapter_", "optimizer"))]
        if names:
            return f"{what} {shorten_list(names)}"
    return "no *.safetensors"


def _check_tokenizer(file: Path, thorough: bool) -> None:
    """Raise InputError where tokenizer.json has a token beyond the embedding that a text may become.

    Special tokens mean what is no text (an image, in a family's text model): no text becomes one.
    """
    rows = architecture(file.parent).get("vocab_size", inf)
    if not thorough and size_of(file) > LARGE and not _mentions(file.read_bytes(), rows):
        return
    content = read_json(file)
    try:
        added = content.get("added_tokens") or []
        vocabulary = content["model"].get("vocab") or {}
        if not isinstance(vocabulary, dict):
            vocabulary = {piece: number for number, (piece, *_) in enumerate(vocabulary)}
        special = {token["id"] for token in added if token["special"]}
        tokens = {**vocabulary, **{token["content"]: token["id"] for token in added}}
        beyond = {number: piece for piece, number in tokens.items() if number >= rows and number not in special}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{file} is not a tokenizer of the tokenizers library") from None
    if beyond:
        first, more = min(beyond), len(beyond) - 1
        raise InputError(
            f"{file} has the token {beyond[first]!r} with the id {first}{f' and {more} more' if more else ''}, beyond "
            f"the {rows} rows of the embedding (config.json's vocab_size)"
        )


def _mentions(content: bytes, rows: float) -> bool:
    """Return whether JSON has a number beyond ``rows`` after a key; to parse some tokenizers takes a second."""
    return any(int(number) >= rows for number in re.findall(rb'":\s*(\d+)', content))


def adopt(folder: Path, out: Path) -> str:
    """Copy the model's files from ``folder`` into ``out``; return the sentences that follow the source's note.

    tokenizer.json is made if absent. Raises InputError before anything is copied where the files are no whole model.
    """
    from hemorrhage.models.sources.architecture import compare

    check(folder, thorough=True)
    files = contents(folder)
    _try_tokenizer(folder)
    compared = compare(folder, tensors(files.weights))
    notes = list(compared.notes)
    if files.left:
        notes.append(f"Left out, since it does not belong to the model: {shorten_list(files.left)}.")
    for note in notes:
        log.info("%s", note)
    copy_weights(files.weights, folder / INDEX, out, set(compared.surplus))
    for file in files.others:
        if file.name != INDEX:
            content = as_plain_utf8(file) if file.suffix in (".json", ".jinja", ".txt") else None
            (out / file.name).write_bytes(file.read_bytes() if content is None else content)
    if not exists(out / "tokenizer.json"):
        _make_tokenizer(out)
    return "".join(f" {note}" for note in notes)


def _try_tokenizer(folder: Path) -> None:
    """Raise InputError where tokenizer.json, if there is one, is none that the library reads."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if exists(file):
        try:
            Tokenizer.from_str(json.dumps(read_json(file)))
        except Exception as error:
            raise InputError(f"{file} is not a tokenizer of the tokenizers library: {error}") from None


def _make_tokenizer(out: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=False).save_pretrained(out)
    except Exception as error:
        raise InputError(f"no tokenizer.json can be made of the folder's tokenizer: {error}") from None
