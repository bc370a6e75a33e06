"""The tensors of a checkpoint folder, also those that it shares with the base model.

The checkpoint of a variant stores only what the base model does not have. ``shared.json`` next to its safetensors has
``bytes``, the size of a safetensors file with every tensor in full, and ``tensors``, for each one that is not stored in
full:

- ``{base, digest}``: it is the base's tensor of that name, which may be another name than its own;
- ``{base, digest, kept}``: it is the base's where it is not zero. ``<name>.kept`` uint8 [n / 8] has a bit for each
  number, in order, the first in the highest bit: whether it is not zero;
- ``{shape, kept}``: ``<name>.values`` has its numbers that are not zero, in order, ``<name>.kept`` their mask.

``digest`` is that of the base's tensor, so that another base is never taken for it. A number is zero where all its bits
are: what is read back is what was written, bit for bit. The reader is given the base's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hemorrhage.models.layout import view
from hemorrhage.models.stream import Aside, TensorFile, TensorLocation, header, tensor_locations
from hemorrhage.runtime.artifact import MANIFEST, read_manifest
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

FILE = "shared.json"
CHECK = "check.safetensors"
"""The file of hemorrhage.models.reload, which is no part of the model."""

MASK, VALUES = "kept", "values"
"""Suffixes on disk, which stay as the first checkpoints had them."""

SPARSE = 1 / 16
"""Share of zeros from which a mask and the other numbers take less than 16-bit numbers do."""


class SharedEntry(TypedDict, total=False):
    """How a tensor is stored that is not stored in full: its entry in shared.json; see the module's docstring."""

    base: str
    digest: str | None
    kept: bool
    shape: list[int]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a checkpoint's weights."""
    return sorted(file for file in folder.glob("*.safetensors") if file.name != CHECK)


def shares_weights(folder: Path) -> bool:
    """Return whether a checkpoint needs its base model to be read."""
    return (folder / FILE).is_file()


class Weights:
    """Name, shape, dtype and value of every tensor of a checkpoint's safetensors files."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        """Read the headers; ``base`` is the base model's folder, for a checkpoint that shares tensors with it.

        Raises ValueError where the base is needed and missing, or is another one.
        """
        self._folder = folder
        self._locations: dict[str, TensorLocation] = {}
        for file in weight_files(folder):
            self._locations |= tensor_locations(file)
        self._locations = view(folder, self._locations)
        shared = json.loads((folder / FILE).read_text(encoding="utf-8")) if shares_weights(folder) else {}
        self._shared: dict[str, SharedEntry] = shared.get("tensors", {})
        self._digests: dict[str, str] | None = None
        used = {entry["base"]: entry["digest"] for entry in self._shared.values() if "base" in entry}
        self._base: Weights | None = None
        if used:
            if base is None:
                raise ValueError(f"{folder} shares weights with the base model, whose folder was not given")
            self._base = Weights(base)
            wrong = [name for name, digest in used.items() if self._base.digest(name) != digest]
            if wrong:
                raise ValueError(f"{folder} was made from another base model than {base}: {wrong[0]} differs")

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        pieces = {f"{name}.{suffix}" for name in self._shared for suffix in (MASK, VALUES)}
        return [*(name for name in self._locations if name not in pieces), *self._shared]

    def __contains__(self, name: str) -> bool:
        return name in self._locations or name in self._shared

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor."""
        entry = self._shared.get(name)
        if entry is None:
            return torch.Size(self._locations[name].shape)
        return torch.Size(entry["shape"]) if "shape" in entry else self._of_base().shape(entry["base"])

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        entry = self._shared.get(name)
        if entry is None:
            return self._locations[name].dtype
        return self.dtype(f"{name}.{VALUES}") if "shape" in entry else self._of_base().dtype(entry["base"])

    def masked(self, name: str) -> bool:
        """Return whether a tensor is stored as a mask: reading it takes memory, others are mapped from their file."""
        return bool(self._shared.get(name, {}).get("kept"))

    def tensor(self, name: str) -> Tensor:
        """Return the value of a tensor. Raises KeyError where there is none of that name."""
        entry = self._shared.get(name)
        if entry is None:
            return self._locations[name].tensor()
        if not entry.get("kept"):
            return self._of_base().tensor(entry["base"])
        shape = self.shape(name)
        mask = _unpack_mask(self.tensor(f"{name}.{MASK}"), shape)
        if "shape" in entry:
            values = self.tensor(f"{name}.{VALUES}")
            # Their bits, because torch scatters no numbers of 8 bits.
            bits = _bits(values)
            return torch.zeros(shape, dtype=bits.dtype).masked_scatter_(mask, bits).view(values.dtype)
        return torch.where(mask, self._of_base().tensor(entry["base"]), 0)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of every tensor, one in memory at a time."""
        for name in self.names():
            yield name, self.tensor(name)

    def digest(self, name: str) -> str | None:
        """Return a tensor's digest, from the manifest where that has it; None where there is no such tensor."""
        if self._digests is None:
            manifest = self._folder / MANIFEST
            self._digests = dict(read_manifest(self._folder).get("tensors", {})) if manifest.is_file() else {}
        if name not in self._digests and name in self:
            self._digests[name] = digest(self.tensor(name))
        return self._digests.get(name)

    def digests(self) -> dict[str, str]:
        """Return the digest of every tensor by name."""
        return {name: str(self.digest(name)) for name in self.names()}

    def _of_base(self) -> Weights:
        assert self._base is not None
        return self._base


@dataclass(frozen=True)
class Encoded:
    """A tensor as it is stored: its entry in ``shared.json``, None where it is in full, and its pieces by suffix."""

    entry: SharedEntry | None
    pieces: dict[str, Tensor]


def encode(name: str, value: Tensor, base: Weights, known: Mapping[str, str]) -> Encoded:
    """Return how to store ``value`` in the fewest bytes; ``known``: digest -> name of each tensor of ``base``."""
    same = known.get(digest(value))
    if same is not None:
        return Encoded({"base": same, "digest": base.digest(same)}, {})
    bits = _bits(value)
    mask = bits != 0
    if name in base and base.shape(name) == value.shape and base.dtype(name) == value.dtype:
        masked = torch.where(mask, _bits(base.tensor(name)), 0)
        if torch.equal(masked, bits):
            return Encoded({"base": name, "digest": base.digest(name), "kept": True}, {MASK: _pack_mask(mask)})
    if int(mask.sum()) < (1 - SPARSE) * mask.numel():
        return Encoded({"shape": list(value.shape), "kept": True}, {MASK: _pack_mask(mask), VALUES: value[mask]})
    return Encoded(None, {"": value})


def write(folder: Path, tensors: Mapping[str, tuple[Tensor, torch.dtype]], name: str, base: Path | None = None) -> None:
    """Write ``tensors``, each in its dtype, as the safetensors file ``name``; what ``base`` has is not written again.

    Raises OSError where the disk is full.
    """
    shapes = {key: value.shape for key, (value, _) in tensors.items()}
    dtypes = {key: dtype for key, (_, dtype) in tensors.items()}
    metadata = {"format": "pt"}
    if base is None:
        with TensorFile(folder / name, shapes, dtypes, metadata) as file:
            for value, dtype in tensors.values():
                file.write([value.to(dtype)])
        return
    of_base = Weights(base)
    known = {digest: key for key, digest in of_base.digests().items()}
    shared: dict[str, SharedEntry] = {}
    pieces: dict[str, Tensor] = {}
    aside = Aside(folder)
    for key, (value, dtype) in tensors.items():
        encoded = encode(key, value.to(dtype), of_base, known)
        if encoded.entry is not None:
            shared[key] = encoded.entry
        for suffix, piece in encoded.pieces.items():
            # A tensor of the model takes no more room for being written.
            pieces[f"{key}.{suffix}".removesuffix(".")] = piece if piece is value else aside.put(piece)
    own_shapes = {key: piece.shape for key, piece in pieces.items()}
    own_dtypes = {key: piece.dtype for key, piece in pieces.items()}
    with TensorFile(folder / name, own_shapes, own_dtypes, metadata) as file:
        file.write(pieces.values())
    size = len(header(shapes, dtypes, metadata)) + sum(shapes[key].numel() * dtypes[key].itemsize for key in shapes)
    content = {"bytes": size, "tensors": shared}
    (folder / FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def digest(value: Tensor) -> str:
    """Return what identifies a tensor: 128 bits of its dtype, shape and numbers."""
    import xxhash

    hashed = xxhash.xxh3_128(f"{value.dtype} {list(value.shape)}".encode())
    hashed.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _bits(value: Tensor) -> Tensor:
    """Return the numbers' bits, as integers of the same size."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.detach().contiguous().view(integers[value.element_size()])


def _pack_mask(mask: Tensor) -> Tensor:
    """Pack a boolean tensor of n numbers: uint8 [n / 8]."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.flatten().numpy()))


def _unpack_mask(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack the boolean tensor of ``shape``."""
    import numpy as np

    return torch.from_numpy(np.unpackbits(packed.numpy(), count=shape.numel()).view(bool)).view(shape)
