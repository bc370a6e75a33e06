"""Large tensors piece by piece: writing and reading a safetensors file, going through a matrix by rows.

The library that writes such files wants all tensors in memory at once; the one that reads them maps a whole file, whose
pages stay resident until the last of its tensors is gone, and which the kernel refuses where a file is larger than
memory.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of types -> those of the format."""


def is_real(dtype: torch.dtype) -> bool:
    """Return whether weights of ``dtype`` are numbers as they are: those of 8 bits are codes that have a scale."""
    return dtype.is_floating_point and dtype.itemsize > 1


PIECE = 2**22
"""Elements of a piece: work on it needs a few copies in float32, which stay small next to a layer and in the cache."""


IN_MEMORY = 2**28
"""Bytes of tensors put aside that stay in memory."""


def rows_at_once(columns: int) -> int:
    """Return the rows of a matrix of ``columns`` that make a piece."""
    return max(1, PIECE // columns)


def header(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> bytes:
    """Return the header of a safetensors file whose tensors follow each other in the order of ``shapes``."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtypes[name].itemsize
        dtype = DTYPES[str(dtypes[name]).removeprefix("torch.")]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
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
        of_tensor = dict.fromkeys(shapes, dtypes) if isinstance(dtypes, torch.dtype) else dtypes
        self._left = sum(torch.Size(shape).numel() * of_tensor[name].itemsize for name, shape in shapes.items())
        self._path = path
        self._stream = path.open("wb")
        self._stream.write(header(shapes, of_tensor, metadata))

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Append ``pieces``, on the processor, to what was written: the next tensors or parts of them."""
        for piece in pieces:
            raw = piece.contiguous().flatten().view(torch.uint8).numpy()
            self._left -= raw.nbytes
            self._stream.write(raw.data)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if error is None and self._left:
            raise ValueError(f"{self._path}: {self._left} bytes of the announced tensors were not written")


class WriteBehind:
    """Writes tensors from a GPU to a file in a thread, in order, while the GPU goes on; others at once."""

    def __init__(self, file: TensorFile, room: int = IN_MEMORY) -> None:
        """``room``: bytes that may wait to be written; they are in pinned memory."""
        self._file, self._room = file, room
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Append ``pieces`` to what was written. Raises OSError for what could not be written before: disk full."""
        for piece in pieces:
            if piece.is_cuda:
                host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
                host.copy_(piece, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
                self._later(host, arrived.synchronize)
            else:
                self._file.write([piece])

    def _later(self, piece: Tensor, arrive: Callable[[], object]) -> None:
        """Write ``piece`` once ``arrive`` returns; wait where too much waits already."""

        def write() -> None:
            arrive()
            self._file.write([piece])

        while self._waiting and sum(size for size, _ in self._waiting) + piece.nbytes > self._room:
            self._waiting.popleft()[1].result()
        self._waiting.append((piece.nbytes, self._thread.submit(write)))

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for _, written in self._waiting:
                written.result()


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor lies in a safetensors file: ``offset`` in bytes from its beginning."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        """Map the tensor: the kernel may take out of memory again what was read of it."""
        return map_tensor(self.file, self.offset, self.shape, self.dtype)


def tensor_locations(file: Path) -> dict[str, TensorLocation]:
    """Return each tensor's location in a safetensors file. Raises ValueError for one that is damaged or truncated."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise ValueError(f"{file} is truncated or not a safetensors file")
        entries = json.loads(stream.read(length))
    dtypes = {theirs: getattr(torch, ours) for ours, theirs in DTYPES.items()}
    locations = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in dtypes:
            raise ValueError(f"{file}: {name} is of type {entry['dtype']}; {', '.join(dtypes)} can be read")
        location = TensorLocation(file, dtypes[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
        if 8 + length + end > size or end - begin != torch.Size(location.shape).numel() * location.dtype.itemsize:
            raise ValueError(f"{file} is truncated or not a safetensors file: {name} does not fit")
        locations[name] = location
    return locations


def map_tensor(file: Path, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the tensor of ``shape`` and ``dtype`` at a byte of ``file``, mapped into memory by itself.

    What is written to it stays in memory and never reaches the file. Raises OSError where it can't be mapped.
    """
    length = torch.Size(shape).numel() * dtype.itemsize
    if not length:
        return torch.empty(torch.Size(shape), dtype=dtype)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype, library.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    library.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    extent = offset - begin + length
    # Python's own mapping keeps a file open for each tensor, and there may be thousands.
    descriptor = os.open(file, os.O_RDONLY)
    try:
        address = library.mmap(None, extent, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, descriptor, begin)
    finally:
        os.close(descriptor)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: {file}")
    memory = (ctypes.c_uint8 * length).from_address(address + offset - begin)
    weakref.finalize(memory, library.munmap, address, extent).atexit = False
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    # The format lets numbers begin anywhere, processors do not.
    return (raw.clone() if offset % dtype.itemsize else raw).view(dtype).view(torch.Size(shape))


def return_freed() -> None:
    """Let the C library give every freed tensor of a megabyte back to the kernel from now on, where it is glibc.

    Left alone, glibc keeps tensors of up to 32 MiB on its heap once it has freed a greater one. There they lie between
    small objects that stay, and memory grows with each block.
    """
    _allocate(mapped=2**20, kept=2**17)


def keep_freed() -> None:
    """Let the C library keep what freed tensors of up to 32 MiB took, up to a GiB, from now on, where it is glibc.

    Left alone, glibc gives it back to the kernel at each chance, which hands it out again page by page, each zeroed:
    a tenth of the time that a small model computes.
    """
    _allocate(mapped=2**25, kept=2**30)


def _allocate(mapped: int, kept: int) -> None:
    """Set from how many bytes on an allocation is a mapping (``mapped``), and how many free ones the heap keeps."""
    trim_threshold, mmap_threshold = -1, -3
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(trim_threshold, kept)
        library.mallopt(mmap_threshold, mapped)


class Aside:
    """Tensors that wait until they are needed again: few of them in memory, the others in nameless files.

    A file's place on the disk is free again when its tensor is gone.
    """

    def __init__(self, folder: Path | None) -> None:
        """``folder``: on the disk that the files are to be on; without it all stay in memory."""
        self._folder = folder
        self._bytes = 0

    def put(self, value: Tensor) -> Tensor:
        """Return ``value``, or the same mapped from a file where memory is short. Raises OSError: disk full."""
        self._bytes += value.nbytes
        if self._folder is None or self._bytes <= IN_MEMORY or value.device.type != "cpu":
            return value
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            file.write(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
            return map_tensor(Path(file.name), 0, value.shape, value.dtype)
