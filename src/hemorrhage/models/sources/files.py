"""The files of a checkpoint folder: which of them are the model, and what each says before a tensor is read.

Nothing heavy is imported: params.yaml is checked with this at every start.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hemorrhage.runtime.step import InputError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

SETTINGS = ("config.json", "generation_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
"""Files that a tokenizer is made from, alone or with those below."""

VOCABULARIES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
)

NAMES = (*SETTINGS, *VOCABULARIES)
"""Files that are adopted of a folder next to its weights, where it has them."""

DOCUMENTATION = (".md", ".pdf", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".html")
"""Ends of names that are left out without a word; so is what is hidden, and licences."""

POINTERS = ((b"version https://git-lfs", "Git LFS"), (b"# xet version", "Git Xet"))
"""Beginning of a pointer to another file -> the program whose pointer it is."""

BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Bytes of a number by safetensors' name of its type; smaller ones share a byte."""

PIECE = 2**24
"""Bytes that are copied at once."""


NAMES_OF_SIZES = {
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "attention_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "n_routed_experts": "num_local_experts",
    "moe_num_experts": "num_experts",
    "moe_k": "num_experts_per_tok",
    "moe_topk": "num_experts_per_tok",
}
"""Names of GPT-2, GPT-Neo, BLOOM, MPT, XGLM, DeepSeek, ERNIE and Hunyuan -> those of the other families."""


@dataclass(frozen=True)
class Tensor:
    """What a safetensors file says of a tensor; ``begin`` and ``end`` are bytes from the file's beginning."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Contents:
    """The files of a folder: those that are the model, and the names of its other files."""

    weights: tuple[Path, ...]
    others: tuple[Path, ...]
    left: tuple[str, ...]

    @property
    def adopted(self) -> tuple[Path, ...]:
        """All files that are the model."""
        return (*self.weights, *self.others)


def contents(folder: Path) -> Contents:
    """Return the files of ``folder`` that are the model.

    The weights are the files that model.safetensors.index.json names, else model.safetensors alone. Raises InputError
    where the index can't be read.
    """
    index = folder / INDEX
    weights = [folder / name for name in sorted(set(weight_map(index).values()))] if exists(index) else []
    others = [index] if weights else []
    if not weights and exists(folder / WEIGHTS):
        weights = [folder / WEIGHTS]
    others += [folder / name for name in NAMES if exists(folder / name)]
    adopted = {file.name for file in (*weights, *others)}
    left = sorted(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in folder.iterdir()
        if entry.name not in adopted and not _documents(entry.name)
    )
    return Contents(tuple(weights), tuple(others), tuple(left))


def weight_map(index: Path) -> dict[str, str]:
    """Read a model.safetensors.index.json: tensor -> file. Raises InputError where it is none."""
    content = read_json(index)
    file_names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(file_names, dict) or not file_names:
        raise InputError(f"{index} has no weight_map")
    for name in file_names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names {name!r}, which is not a file in its folder")
    return file_names


def tensors(weights: tuple[Path, ...]) -> dict[str, Tensor]:
    """Read every tensor of the files. Raises InputError where one is missing or damaged, or a tensor is in two."""
    by_name: dict[str, Tensor] = {}
    for file in weights:
        for name, tensor in header(file).items():
            if name in by_name:
                raise InputError(f"{file} has {name}, and so has {by_name[name].file.name}")
            by_name[name] = tensor
    return by_name


def header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, from its first bytes. Raises InputError where it is not whole."""
    size = size_of(file)
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = stream.read(length) if 2 <= length <= size - 8 else b""
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(file, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        if _begins_as_json(file) and length > size - 8:
            raise InputError(f"{file} is truncated: it has {size} bytes, its header alone {8 + length}") from None
        raise InputError(f"{file} is not a safetensors file") from None
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size < end:
        raise InputError(f"{file} is truncated: it has {size} of {end} bytes")
    if size > end:
        raise InputError(f"{file} is damaged: it has {size} bytes, and its header speaks of {end}")
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            # A name that is in the header twice leaves a gap, too.
            problem = "overlaps another tensor" if tensor.begin < position else "comes after bytes of no tensor"
            raise InputError(f"{file} is damaged: {name} {problem}")
        position = tensor.end
    return tensors


class Entry(TypedDict):
    """What a safetensors header says of a tensor; offsets are in bytes from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _tensor(file: Path, start: int, entry: Entry) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    size = BYTES.get(entry["dtype"])
    if not 0 <= begin <= end or any(number < 0 for number in shape):
        raise ValueError(f"{entry} has negative numbers")
    if size is not None and math.prod(shape) * size != end - begin:
        raise ValueError(f"{entry} does not add up")
    return Tensor(file, entry["dtype"], shape, start + begin, start + end)


def _begins_as_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def copy_weights(weights: tuple[Path, ...], index: Path, out: Path, without: set[str]) -> None:
    """Copy weight files, and their ``index`` where there is one, into ``out``, without the tensors named."""
    for file in weights:
        stored = header(file)
        if without.isdisjoint(stored):
            shutil.copyfile(file, out / file.name)
        else:
            wanted = {name: tensor for name, tensor in stored.items() if name not in without}
            _copy_only(file, wanted, out / file.name)
    if exists(index):
        content = read_json(index)
        content["weight_map"] = {name: file for name, file in weight_map(index).items() if name not in without}
        (out / index.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _copy_only(file: Path, wanted: dict[str, Tensor], out: Path) -> None:
    """Copy a safetensors file with the tensors ``wanted`` alone."""
    entries: dict[str, Entry | dict[str, str]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    in_order = sorted(wanted.items(), key=lambda item: item[1].begin)
    for name, tensor in in_order:
        end = offset + tensor.end - tensor.begin
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("rb") as source, out.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in in_order:
            source.seek(tensor.begin)
            for start in range(tensor.begin, tensor.end, PIECE):
                target.write(source.read(min(PIECE, tensor.end - start)))


def read_json(file: Path) -> Any:
    """Return the content of a JSON file in any Unicode encoding. Raises InputError, one line that names the file."""
    size_of(file)
    try:
        return json.loads(file.read_bytes())
    except UnicodeDecodeError:
        raise InputError(f"{file} is not in UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is broken JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise InputError(f"{file} is broken JSON: it is nested too deep") from None


def architecture(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json with sizes under the most common names, a text tower's at the top level.

    The type stays the whole model's. It is ``models.architecture.text_entries`` without transformers.
    """
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    settings = {**config, **text, "model_type": config.get("model_type")} if isinstance(text, dict) else dict(config)
    for family_name, name in NAMES_OF_SIZES.items():
        if family_name in settings:
            settings.setdefault(name, settings[family_name])
    if "num_layers" in settings and "num_heads" in settings:
        # GPT-Neo's; in Mamba-2 these are no heads of attention.
        settings.setdefault("num_attention_heads", settings["num_heads"])
    return settings


def as_plain_utf8(file: Path) -> bytes | None:
    """Return a text file's content in UTF-8 without a byte order mark, or None where it is that already."""
    content = file.read_bytes()
    encoding = json.detect_encoding(content[:4]) if file.suffix == ".json" else _marked(content)
    return None if encoding == "utf-8" else content.decode(encoding).encode()


def _marked(content: bytes) -> str:
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    return next((name for mark, name in marks if content.startswith(mark)), "utf-8")


def exists(file: Path) -> bool:
    """Return whether a file is in its folder, also as a broken link."""
    return file.is_file() or file.is_symlink()


def refusal_of(check: Callable[[Path], object], path: Path) -> str | None:
    """Return the line that ``check`` refuses a path with, or None."""
    try:
        check(path)
    except InputError as problem:
        return str(problem)
    except OSError as error:
        return f"{error.filename or path} can't be read: {error.strerror or error}"
    return None


def size_of(file: Path) -> int:
    """Return a file's size in bytes. Raises InputError where it is missing, empty, unreadable, or a pointer."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
        size = file.stat().st_size
    except FileNotFoundError:
        what = "is a broken link" if file.is_symlink() else "is missing"
        raise InputError(f"{file} {what}") from None
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from None
    if not size:
        raise InputError(f"{file} is empty")
    for begins, whose in POINTERS:
        if start.startswith(begins):
            command = "git lfs pull" if whose == "Git LFS" else "git xet pull"
            raise InputError(
                f"{file} is a pointer of {whose} and not the file itself; `{command}` in its folder gets it"
            )
    return size


def _documents(name: str) -> bool:
    lower = name.lower()
    return lower.startswith((".", "license", "licence", "notice", "readme")) or lower.endswith(DOCUMENTATION)


def shorten_list(names: Sequence[str], most: int = 4) -> str:
    """Return the first names and how many more there are, in a line."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
