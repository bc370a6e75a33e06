"""The tensors of one layer in a checkpoint that somebody else wrote: each is checked before it is used.

What is wrong ends in a ValueError of one line that names the tensor, before anything large is allocated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""Types of scales and of float zero points."""


class Pieces:
    """The tensors of a layer by suffix."""

    def __init__(self, stored: Mapping[str, Tensor], known: Collection[str]) -> None:
        """Take ``stored``. Raises ValueError where it has a tensor that is not ``known``: it might matter."""
        self._stored = stored
        unknown = sorted(set(stored) - set(known))
        if unknown:
            raise ValueError(f"has the tensor {unknown[0]}, which this format does not have")

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def tensor(self, name: str, dtypes: Iterable[torch.dtype], dimensions: int) -> Tensor:
        """Return a tensor of one of ``dtypes`` with numbers in it. Raises ValueError where it is missing or another."""
        if name not in self._stored:
            raise ValueError(f"lacks the tensor {name}")
        value, expected = self._stored[name], tuple(dtypes)
        if value.dtype not in expected:
            raise ValueError(f"{name} is of type {type_name(value)}, not {' or '.join(map(plain_name, expected))}")
        if value.ndim != dimensions or not value.numel():
            raise ValueError(f"{name} has the shape {list(value.shape)}, not {dimensions} dimensions with numbers")
        return value

    def scales(self, name: str, dimensions: int = 2) -> Tensor:
        """Return a tensor of finite floating-point numbers."""
        value = self.tensor(name, FLOATS, dimensions)
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} has numbers that are not finite")
        return value

    def number(self, name: str) -> int:
        """Return the whole number that a tensor of one element holds."""
        value = self._stored.get(name)
        if value is None or value.numel() != 1 or value.is_floating_point():
            raise ValueError(f"{name} is missing or not one whole number")
        return int(value.item())


def fit(name: str, value: Tensor, *shape: int) -> None:
    """Raise ValueError where ``value`` has not the ``shape``."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has the shape {list(value.shape)}, not {list(shape)} as the other tensors need")


def type_name(value: Tensor) -> str:
    """Return the name of a tensor's type in words."""
    return plain_name(value.dtype)


def plain_name(dtype: torch.dtype) -> str:
    """Return the name of a type without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def whole(quantization: Mapping[str, object], *keys: str) -> int | None:
    """Return the entry of the first of ``keys`` that is there, where it is a whole number, else None."""
    for key in keys:
        value = quantization.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def groups_in_words(size: int | None) -> str:
    """Return the group size in words: -1 is a scale for each row."""
    return "a scale a row" if size is None or size < 1 else f"groups of {size}"
