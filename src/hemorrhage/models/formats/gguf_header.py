"""The header of a GGUF file: metadata and where its tensors lie, read with bounds.

A file of somebody else's is hostile input. Every count, length, size and offset is compared with what is left of the
file before anything of that size is read; what does not fit is a ``GgufError``, one line. No tensor is read here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
LARGEST_ALIGNMENT = 2**16
MOST_ENTRIES = 2**16
MOST_TENSORS = 2**18
LONGEST_NAME = 2**12
LONGEST_HEADER = 2**26
"""Bytes. A vocabulary of 262,144 tokens takes ten millions."""
DEEPEST = 4
"""Arrays in arrays."""
MOST_DIMENSIONS = 4
LARGEST = 2**48
"""Weights of a tensor."""

SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""GGUF's number of a type of metadata -> how it lies."""

STRING, ARRAY = 8, 9

_LENGTH = struct.Struct("<Q")

Value = bool | int | float | str | list["Value"]
"""An entry of the metadata."""


class GgufError(ValueError):
    """What is wrong with a GGUF file, in one line."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``shape`` in weights, rows before columns; ``offset`` and ``size`` in bytes of the file."""

    path: Path
    ggml_type: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """A file's metadata and its tensors by name."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Return a file's header. Raises GgufError where it is not a whole GGUF file."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise GgufError(f"{path} is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parser(path, content).header()
    except OSError as error:
        raise GgufError(f"{path} can't be read: {error.strerror or error}") from None


@cache
def _type_sizes() -> dict[int, tuple[str, int, int]]:
    """Return number of a type -> its name, weights of a block, bytes of a block."""
    from gguf import GGML_QUANT_SIZES

    return {int(number): (number.name.lower(), *sizes) for number, sizes in GGML_QUANT_SIZES.items()}


class _Parser:
    """Reads a file from its beginning; ``_at`` is where it stands."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._size, self._at = path, content, len(content), 0

    def header(self) -> Header:
        magic = self._bytes(4)
        if magic != MAGIC:
            raise self._error("it does not begin with GGUF")
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._error(f"its version is {version}; {' and '.join(map(str, VERSIONS))} are read")
        tensors, entries = self._number("<Q"), self._number("<Q")
        # A tensor takes 24 bytes at least, an entry 13.
        self._bound("tensors", tensors, min(MOST_TENSORS, self._left // 24))
        self._bound("entries", entries, min(MOST_ENTRIES, self._left // 13))
        metadata: dict[str, Value] = {}
        for _ in range(entries):
            key = self._name("key")
            if key in metadata:
                raise self._error(f"it has {key} twice")
            metadata[key] = self._value(self._number("<I"), 0)
        return Header(metadata, self._tensors(tensors, _alignment(self._path, metadata)))

    def _tensors(self, count: int, alignment: int) -> dict[str, StoredTensor]:
        announced: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self._name("tensor")
            if name in announced:
                raise self._error(f"it has the tensor {name} twice")
            announced[name] = self._announced(name, alignment)
        start = -(-self._at // alignment) * alignment
        stored = {
            name: StoredTensor(self._path, ggml_type, shape, start + offset, size)
            for name, (ggml_type, shape, offset, size) in announced.items()
        }
        end, before = start, ""
        for name, tensor in sorted(stored.items(), key=lambda item: (item[1].offset, item[1].size)):
            if tensor.offset < end:
                raise self._error(f"its tensors {before} and {name} overlap")
            if tensor.offset + tensor.size > self._size:
                raise self._error(f"it ends before its tensor {name}; it is truncated")
            end, before = tensor.offset + tensor.size, name
        return stored

    def _announced(self, name: str, alignment: int) -> tuple[str, tuple[int, ...], int, int]:
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._error(f"its tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        number = self._number("<I")
        if number not in _type_sizes():
            raise self._error(f"its tensor {name} has the type {number}, which is not known")
        ggml_type, width, size = _type_sizes()[number]
        weights = 1
        for length in shape:
            weights *= length
            if not 1 <= length <= LARGEST or weights > LARGEST:
                raise self._error(f"its tensor {name} has the shape {list(shape)}")
        if shape[-1] % width:
            raise self._error(f"the rows of its tensor {name} ({shape[-1]}) are no whole blocks of {ggml_type}")
        offset = self._number("<Q")
        if offset % alignment:
            raise self._error(f"its tensor {name} lies at {offset}, which {alignment} does not divide")
        bytes_of_tensor = weights // width * size
        if offset + bytes_of_tensor > self._size:
            raise self._error(f"it ends before its tensor {name}; it is truncated")
        return ggml_type, shape, offset, bytes_of_tensor

    def _value(self, kind: int, depth: int) -> Value:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._text(self._left)
        if kind != ARRAY:
            raise self._error(f"an entry of its metadata has the type {kind}, which is not known")
        if depth == DEEPEST:
            raise self._error("its metadata has arrays in arrays in arrays")
        of, count = self._number("<I"), self._number("<Q")
        if of in SCALARS:
            form = SCALARS[of]
            self._bound("numbers of an array", count, self._left // struct.calcsize(form))
            values = struct.unpack(f"<{count}{form[1]}", self._bytes(count * struct.calcsize(form)))
            return list(values)
        # A string takes 8 bytes at least, an array 12.
        self._bound("parts of an array", count, self._left // (8 if of == STRING else 12))
        if of == STRING:
            return self._texts(count)
        return [self._value(of, depth + 1) for _ in range(count)]

    @property
    def _left(self) -> int:
        return min(self._size, LONGEST_HEADER) - self._at

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            limit = "it ends within its header; it is truncated"
            raise self._error(limit if self._size <= LONGEST_HEADER else f"its header is over {LONGEST_HEADER} bytes")
        self._at += count
        return self._content[self._at - count : self._at]

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return number

    def _text(self, longest: int) -> str:
        length = self._number("<Q")
        self._bound("bytes of a string", length, min(longest, self._left))
        return self._bytes(length).decode("utf-8", errors="replace")

    def _texts(self, count: int) -> list[Value]:
        """Read the strings of an array: ``_text`` for vocabularies, which are most of a header."""
        content, at, end = self._content, self._at, self._at + self._left
        texts: list[Value] = []
        for _ in range(count):
            if end - at < 8:
                raise self._error("it ends within its header; it is truncated")
            (length,) = _LENGTH.unpack_from(content, at)
            at += 8
            if length > end - at:
                self._bound("bytes of a string", length, end - at)
            texts.append(content[at : at + length].decode("utf-8", errors="replace"))
            at += length
        self._at = at
        return texts

    def _name(self, what: str) -> str:
        name = self._text(LONGEST_NAME)
        if not name or not name.isprintable() or "\ufffd" in name:
            raise self._error(f"the name of a {what} is no text")
        return name

    def _bound(self, what: str, count: int, most: int) -> None:
        if count > most:
            raise self._error(f"it announces {count} {what}, and {most} is the most there can be")

    def _error(self, reason: str) -> GgufError:
        return GgufError(f"{self._path} is no whole GGUF file: {reason}")


def _alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= LARGEST_ALIGNMENT or alignment % 8:
        raise GgufError(f"{path} is no whole GGUF file: its general.alignment is {repr(alignment)[:40]}")
    return alignment
