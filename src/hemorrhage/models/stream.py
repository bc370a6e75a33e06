"""Large tensors piece by piece: writing a safetensors file, going through a matrix by rows.

The library that writes such files wants all tensors in memory at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of types -> those of the format."""


PIECE = 2**22
"""Elements of a piece: work on it needs a few copies in float32, which stay small beside a layer and in the cache."""


def rows_at_once(columns: int) -> int:
    """Rows of a matrix of ``columns`` that make a piece."""
    return max(1, PIECE // columns)


def header(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> bytes:
    """What a safetensors file begins with whose tensors lie one behind the other in the order of ``shapes``."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtypes[name].itemsize
        kind = DTYPES[str(dtypes[name]).removeprefix("torch.")]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TensorFile:
    """A safetensors file whose tensors are written one after the other, in pieces."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        dtypes: torch.dtype | Mapping[str, torch.dtype],
        metadata: Mapping[str, str],
    ) -> None:
        """``shapes`` in the order of writing; one dtype for all or one for each."""
        kinds = dict.fromkeys(shapes, dtypes) if isinstance(dtypes, torch.dtype) else dtypes
        self._left = sum(torch.Size(shape).numel() * kinds[name].itemsize for name, shape in shapes.items())
        self._path = path
        self._stream = path.open("wb")
        self._stream.write(header(shapes, kinds, metadata))

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Append ``pieces``, on the processor, to what was written: the next tensors or parts of them."""
        for piece in pieces:
            raw = piece.contiguous().flatten().view(torch.uint8).numpy()
            self._left -= raw.nbytes
            self._stream.write(raw.data)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if error is None and self._left:
            raise ValueError(f"{self._path}: {self._left} bytes of the announced tensors were not written")
