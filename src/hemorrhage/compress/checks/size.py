"""What a checkpoint stores, counted in bits: nothing nominal, everything included."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemorrhage.models.weights import FILE, Weights, shares_weights, weight_files


@dataclass(frozen=True)
class Stored:
    """Bits of a checkpoint: of everything, and of the decoder blocks' linear layers."""

    all: float
    layers: float


def disk_bytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights with every tensor in full, headers of the files included."""
    if shares_weights(folder):
        return int(json.loads((folder / FILE).read_text(encoding="utf-8"))["bytes"])
    return stored_bytes(folder)


def stored_bytes(folder: Path) -> int:
    """Return the bytes that a checkpoint's weights take in its folder: without what it shares with the base model."""
    files = [*weight_files(folder), *folder.glob("*.gguf"), *folder.glob(FILE)]
    return sum(file.stat().st_size for file in files)


def stored_bits(weights: Weights) -> float:
    """Return the bits of all tensors of a checkpoint: packed words, scales, zero points, embeddings, norms."""
    return sum(_bits(weights, name) for name in weights.names())


def stored_layers(
    folder: Path,
    weights: Weights,
    layers: Collection[str],
    mask_bits: float | None,
    zeros: Mapping[str, int],
    forms: Mapping[str, Any],
) -> Stored:
    """Return bits of all tensors of the checkpoint ``folder`` with these ``weights``, and of those of its ``layers``.

    Where ``mask_bits`` is given, the layers' weights are counted as an ideal sparse format would hold them: the nonzero
    values, and ``mask_bits`` for every place; ``zeros`` says how many each layer has.
    ``forms``: layers that are packed.
    """
    total = inside = 0.0
    prefixes = tuple(f"{name}." for name in layers)
    for name in weights.names():
        bits = _bits(weights, name)
        if name.startswith(prefixes):
            if mask_bits is not None and name.endswith(".weight"):
                number = weights.shape(name).numel()
                bits = bits / number * (number - zeros[name.removesuffix(".weight")]) + mask_bits * number
            inside += bits
        total += bits
    for file in folder.glob("*.gguf"):
        from hemorrhage.models.formats.gguf_file import stored_bits as bits_of_gguf

        bits_by_name = bits_of_gguf(file)
        total += sum(bits_by_name.values())
        inside += sum(bits for name, bits in bits_by_name.items() if name.startswith(prefixes))
    if mask_bits is not None:
        for name, form in forms.items():
            if form.scheme is not None:
                saved = form.scheme["weights"]["num_bits"] * zeros[name] - mask_bits * form.parameters_count
                total, inside = total - saved, inside - saved
    return Stored(total, inside)


def _bits(weights: Weights, name: str) -> float:
    return 8.0 * weights.dtype(name).itemsize * weights.shape(name).numel()
