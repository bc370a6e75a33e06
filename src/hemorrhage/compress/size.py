"""What a checkpoint stores, counted in bits: nothing nominal, everything included."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemorrhage.models.checkpoint import weight_files
from hemorrhage.models.stream import tensors_of


@dataclass(frozen=True)
class Stored:
    """Bits of a checkpoint: of everything, and of the decoder blocks' linear layers."""

    all: float
    layers: float


def disk_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights on disk, headers of the files included."""
    return sum(file.stat().st_size for file in [*weight_files(folder), *folder.glob("*.gguf")])


def stored_bits(folder: Path) -> float:
    """Bits of all tensors of a checkpoint: packed words, scales, zero points, embeddings, norms."""
    return stored_layers(folder, (), None, {}, {}).all


def stored_layers(
    folder: Path,
    layers: Collection[str],
    mask_bits: float | None,
    zeros: Mapping[str, int],
    forms: Mapping[str, Any],
) -> Stored:
    """Bits of all tensors of a checkpoint, and of those of the linear ``layers``.

    Where ``mask_bits`` is given, the layers' weights are counted as an ideal sparse format would hold them: the nonzero
    values, and ``mask_bits`` for every place; ``zeros`` says how many each layer has.
    ``forms``: layers that are packed.
    """
    total = inside = 0.0
    prefixes = tuple(f"{name}." for name in layers)
    for name, value in tensors_of(folder):
        bits = 8.0 * value.element_size() * value.numel()
        if name.startswith(prefixes):
            if mask_bits is not None and name.endswith(".weight"):
                nonzero = value.numel() - zeros[name.removesuffix(".weight")]
                bits = 8.0 * value.element_size() * nonzero + mask_bits * value.numel()
            inside += bits
        total += bits
    for file in folder.glob("*.gguf"):
        from hemorrhage.models.gguf_file import stored_bits as bits_of_gguf

        found = bits_of_gguf(file)
        total += sum(found.values())
        inside += sum(bits for name, bits in found.items() if name.startswith(prefixes))
    if mask_bits is not None:
        for name, form in forms.items():
            if form.scheme is not None:
                saved = form.scheme["weights"]["num_bits"] * zeros[name] - mask_bits * form.parameters_count
                total, inside = total - saved, inside - saved
    return Stored(total, inside)
