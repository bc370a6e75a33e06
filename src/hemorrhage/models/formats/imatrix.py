"""llama.cpp's importance matrices (imatrix): how large the inputs of a file's tensors are, read and written.

For each tensor and each of its inputs a file has the sum of squares over the tokens that a calibration set sent there;
of experts for each expert. The format of 2025 is a GGUF file: ``<tensor>.in_sum2`` [matrices, inputs] and
``<tensor>.counts`` [matrices, 1], numbers of tokens. The older one (``.dat``) is a list of records: a tensor's name,
how many chunks were seen, and for each input the mean of squares times that number. An expert that no token reached has
1 everywhere there, and so it is read here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hemorrhage.models.formats.gguf_header import MAGIC, GgufError, StoredTensor, read_header
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".gguf", ".dat")
"""Of the two formats, the newer first."""

SQUARES, COUNTS = ".in_sum2", ".counts"

_BLOCK = re.compile(r"blk\.(\d+)\.")

_READS_HIDDEN = re.compile(r"blk\.\d+\.attn_(q|qkv)\.weight")
"""Tensors that read the hidden states in every family that has them."""

LARGEST = 2**31 - 1
"""Numbers and lengths of the older format."""


@dataclass(frozen=True)
class Seen:
    """What a tensor's inputs were: mean ``squares`` float32 [matrices, inputs] over ``tokens`` float32 [matrices]."""

    squares: Tensor
    tokens: Tensor


class _Record(NamedTuple):
    """A tensor in the older format: how many chunks were seen, and float32 squares as they lie in the file."""

    name: str
    calls: int
    values: bytes


def problem(path: Path) -> str | None:
    """Return why a file is no importance matrix, in one line, or None; its numbers are not looked at."""
    try:
        names = [*_sums(path)] if _is_gguf(path) else [record.name for record in _records_of(path)]
    except (OSError, ValueError) as error:
        return str(error)
    return None if names else f"{path} has no tensor of an importance matrix"


def of_another_model(path: Path, layers: int, hidden: int) -> str | None:
    """Say why a file's importances are those of another model than one of ``layers`` blocks and ``hidden`` inputs.

    None where nothing tells: its names and sizes alone are read.
    """
    sizes = _sizes(path)
    blocks = {int(match[1]) for match in map(_BLOCK.match, sizes) if match}
    if not blocks:
        return f"{path} is the importance matrix of another model: it has no tensor of a block"
    if max(blocks) + 1 != layers:
        return f"{path} is the importance matrix of another model: it has {max(blocks) + 1} blocks, this one {layers}"
    other = next((size for name, size in sizes.items() if _READS_HIDDEN.fullmatch(name) and size != hidden), None)
    if other is not None:
        return f"{path} is the importance matrix of another model: its hidden size is {other}, here it is {hidden}"
    return None


def _sizes(path: Path) -> dict[str, int]:
    """Return how many inputs of each tensor a file has."""
    if _is_gguf(path):
        return {name: math.prod(squares.shape) for name, (squares, _) in _sums(path).items()}
    return {record.name: len(record.values) // 4 for record in _records_of(path)}


def read(path: Path) -> dict[str, Tensor]:
    """Return the mean of squares of each input by the file's names of tensors: float32, one matrix behind another.

    Raises ValueError, one line that names the file, where it is neither format, not whole, or not of numbers.
    """
    squares_of = _read_gguf(path) if _is_gguf(path) else _read_records(path)
    for name, squares in squares_of.items():
        if not bool(squares.isfinite().all()) or bool((squares < 0).any()):
            raise ValueError(f"{path}: {name} has squares that are no numbers from 0 on")
    if not squares_of:
        raise ValueError(f"{path} has no tensor")
    return squares_of


def of_parts(squares_of: Mapping[str, Tensor], name: str, parts: int, inputs: int) -> list[Tensor] | None:
    """Return the squares float32 [inputs] of each of the ``parts`` of a tensor; None where the matrix has none of it.

    Raises ValueError where there are others than ``inputs`` for each part.
    """
    squares = squares_of.get(name)
    if squares is None:
        return None
    if squares.numel() != parts * inputs:
        raise ValueError(
            f"the importance matrix has {squares.numel()} inputs of {name}; the model has {parts * inputs}"
        )
    return list(squares.view(parts, inputs))


def write(path: Path, seen: Mapping[str, Seen], length: int, datasets: Sequence[str]) -> None:
    """Write an importance matrix in the format that the suffix says; ``length``: tokens of a window, llama.cpp's chunk.

    ``datasets``: what the windows were taken from. Raises ValueError where the suffix says none.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: an importance matrix is a file {' or '.join(SUFFIXES)}")
    chunks = int(max(each.tokens.max().item() for each in seen.values())) // length
    if path.suffix == ".dat":
        path.write_bytes(_records(seen, length, chunks, datasets))
        return
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "")
    # Of the model there is nothing in such a file, not even its architecture.
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", length)
    for name in sorted(seen):
        each = seen[name]
        counts = each.tokens.float().unsqueeze(1)
        writer.add_tensor(f"{name}{SQUARES}", (each.squares.double() * counts).float().numpy())
        writer.add_tensor(f"{name}{COUNTS}", counts.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _sums(path: Path) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Return where sums and counts of each tensor lie in a file of 2025."""
    tensors = read_header(path).tensors
    sums_of = {}
    for name in (key.removesuffix(SQUARES) for key in tensors if key.endswith(SQUARES)):
        squares, counts = tensors[f"{name}{SQUARES}"], tensors.get(f"{name}{COUNTS}")
        if counts is None or {squares.ggml_type, counts.ggml_type} != {"f32"}:
            raise GgufError(f"{path}: {name} has no float32 sums and counts of an importance matrix")
        sums_of[name] = squares, counts
    return sums_of


def _read_gguf(path: Path) -> dict[str, Tensor]:
    squares_of: dict[str, Tensor] = {}
    for name, both in _sums(path).items():
        values = []
        for tensor in both:
            content = torch.from_file(str(path), False, tensor.offset + tensor.size, dtype=torch.uint8)
            values.append(content[tensor.offset :].clone().view(torch.float32).view(tensor.shape))
        squares, counts = values
        if squares.numel() % counts.numel():
            raise GgufError(f"{path}: {name} has {squares.numel()} sums for {counts.numel()} matrices")
        squares, counts = squares.view(counts.numel(), -1), counts.view(-1, 1)
        squares_of[name] = torch.where(counts > 0, squares / counts, 1.0).flatten()
    return squares_of


def _records_of(path: Path) -> Iterator[_Record]:
    content = path.read_bytes()
    place = 0

    def whole() -> int:
        nonlocal place
        if place + 4 > len(content):
            raise ValueError(f"{path} ends before its last record does, or is no importance matrix")
        (number,) = struct.unpack_from("<i", content, place)
        place += 4
        return int(number)

    def octets(length: int) -> bytes:
        nonlocal place
        if not 0 < length <= len(content) - place:
            raise ValueError(f"{path} ends before its last record does, or is no importance matrix")
        place += length
        return content[place - length : place]

    for _ in range(whole()):
        yield _Record(octets(whole()).decode("utf-8", "replace"), whole(), octets(4 * whole()))


def _read_records(path: Path) -> dict[str, Tensor]:
    return {
        record.name: torch.frombuffer(bytearray(record.values), dtype=torch.float32) / max(record.calls, 1)
        for record in _records_of(path)
    }


def _records(seen: Mapping[str, Seen], length: int, chunks: int, datasets: Sequence[str]) -> bytes:
    parts = [struct.pack("<i", len(seen))]
    for name in sorted(seen):
        each, encoded = seen[name], name.encode()
        calls = -(-int(each.tokens.max()) // length)
        squares = torch.where(each.tokens.unsqueeze(1) > 0, each.squares, 1.0) * calls
        parts += [struct.pack("<i", len(encoded)), encoded, struct.pack("<ii", calls, squares.numel())]
        parts.append(squares.float().contiguous().numpy().tobytes())
    of = ", ".join(datasets).encode()
    return b"".join([*parts, struct.pack("<ii", chunks, len(of)), of])
