"""What a checkpoint stores, counted in bits: nothing nominal, everything included."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hemorrhage.lazy import torch

CHECK = "check.safetensors"
"""The file of hemorrhage.compress.reload, which is no part of the model."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights."""
    return sorted(file for file in folder.glob("*.safetensors") if file.name != CHECK)


def disk_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights on disk, headers of the files included."""
    return sum(file.stat().st_size for file in weight_files(folder))


def stored_bits(folder: Path, sparse: Collection[str] = (), mask_bits: float = 0.0) -> float:
    """Bits of all tensors of a checkpoint: packed words, scales, zero points, embeddings, norms.

    The weights of the linear layers named ``sparse`` are counted as an ideal sparse format would hold them:
    the nonzero values in their dtype, and ``mask_bits`` for every place. No engine has that format today.
    """
    from safetensors import safe_open

    total = 0.0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                value = tensors.get_tensor(name)
                bits = 8 * value.element_size()
                if name.removesuffix(".weight") in sparse:
                    total += bits * int(torch.count_nonzero(value)) + mask_bits * value.numel()
                else:
                    total += bits * value.numel()
    return total
