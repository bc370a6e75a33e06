"""Tensors of a layer as a broken or hostile file would have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from hemorrhage.models.formats.storage import FormattedLinear

Read = TypeVar("Read")


def damaged(stored: Mapping[str, Tensor], seeds: int) -> Iterator[dict[str, Tensor]]:
    """``seeds`` sets of tensors in which one is missing, doubled, of another type or shape, or has other numbers."""
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: value.clone() for name, value in stored.items()}
        names = sorted(tensors)
        name = names[seed % len(names)]
        change = CHANGES[seed // len(names) % len(CHANGES)]
        changed = change(tensors[name], generator)
        if changed is None:
            del tensors[name]
        else:
            tensors[name] = changed
        yield tensors


def read_damaged(
    read: Callable[[dict[str, Tensor]], Read], stored: Mapping[str, Tensor], seeds: int
) -> tuple[list[Read], list[str]]:
    """What ``read`` makes of ``seeds`` damaged sets of tensors, and the lines that it refuses the others with."""
    found, lines = [], []
    for tensors in damaged(stored, seeds):
        try:
            found.append(read(tensors))
        except ValueError as error:
            lines.append(str(error))
    assert not [line for line in lines if "\n" in line]
    return found, lines


def refused(read: Callable[[dict[str, Tensor]], FormattedLinear], stored: Mapping[str, Tensor], seeds: int) -> int:
    """How many of ``seeds`` damaged sets ``read`` refuses; of the others it makes layers of the shape that they say."""
    layers, lines = read_damaged(read, stored, seeds)
    for layer in layers:
        assert layer.dense().shape == (layer.out_features, layer.in_features)
    return len(lines)


def _flip(value: Tensor, generator: torch.Generator) -> Tensor:
    """One bit the other way."""
    octets = value.contiguous().flatten().view(torch.uint8).clone()
    place = int(torch.randint(octets.numel(), (1,), generator=generator))
    octets[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
    return octets.view(value.dtype).view(value.shape)


def _fill(number: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    def change(value: Tensor, _: torch.Generator) -> Tensor:
        if not value.is_floating_point():
            return torch.full_like(value, -1 if value.dtype.is_signed else 255)
        # Infinity is no number of E4M3.
        return torch.full(value.shape, number).to(value.dtype)

    return change


CHANGES: list[Callable[[Tensor, torch.Generator], Tensor | None]] = [
    lambda value, _: None,
    _flip,
    lambda value, _: value[:-1] if value.ndim else value[None],
    lambda value, _: value[..., :-1] if value.ndim else value[None],
    lambda value, _: value.flatten(),
    lambda value, _: value[None],
    lambda value, _: value.T.contiguous() if value.ndim == 2 else value.flatten()[:0],
    lambda value, _: torch.cat([value, value], 0) if value.ndim else torch.stack([value, value]),
    lambda value, _: torch.cat([value, value], -1) if value.ndim else value[None, None],
    lambda value, _: value[:0] if value.ndim else value.view(1)[:0],
    lambda value, _: value.double() if value.is_floating_point() else value.to(torch.int16),
    lambda value, _: value.long() if value.is_floating_point() else value.float(),
    _fill(float("nan")),
    _fill(float("inf")),
    lambda value, _: torch.zeros_like(value),
]
"""What may have happened to a tensor; None: it is missing."""
