"""Grids that cached keys and values are rounded to: arithmetic on tensors, one function a grid.

- ``round_groups``: compressed-tensors' asymmetric integers, with zero on the grid.
- ``round_range``: KIVI's, from the smallest number of a group to the largest.
- ``round_int8``, ``round_int4``, ``round_fp8``: vLLM's per token and head (``--kv-cache-dtype int8_per_token_head`` and
  so on, as its Triton kernels in version 0.33 write them). A scale is float32; that of 4 bits has the zero point in its
  lowest four bits.
- ``round_fixed``: E4M3 times scales that were fixed before, in compressed-tensors' arithmetic.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hemorrhage.models.formats import small_floats

LEAST_SCALE = 1e-6
"""The smallest scale of vLLM's grids."""

SIGNS_SEED = 0x9E3779B9
"""Seed of the signs that vLLM's 4-bit cache flips before its Hadamard transform."""


def round_groups(groups: Tensor, bits: int) -> Tensor:
    """Round ``groups`` [..., elements] to compressed-tensors' asymmetric grid each, in their dtype."""
    x = groups.float()
    low, high = x.amin(-1, keepdim=True).clamp_(max=0), x.amax(-1, keepdim=True).clamp_(min=0)
    half = 2 ** (bits - 1)
    exact = (high - low) / (2**bits - 1)
    zero = torch.where(exact == 0, 0, -half - low / exact).clamp_(-half, half - 1).round_()
    scale = exact.clamp(max=torch.finfo(torch.float16).max).half().float()
    scale = torch.where(scale == 0, torch.finfo(torch.float16).eps, scale)
    return (x / scale).add_(zero).round_().clamp_(-half, half - 1).sub_(zero).mul_(scale).to(groups.dtype)


def round_range(groups: Tensor, bits: int) -> Tensor:
    """Round ``groups`` [..., elements] to KIVI's grid each, from the smallest to the largest, in their dtype."""
    x, largest = groups.float(), torch.finfo(torch.float16).max
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(max=largest).half().float()
    low = low.clamp(-largest, largest).half().float()
    # Numbers that are all alike read back as the smallest by any scale.
    scale = torch.where(scale == 0, 1, scale)
    return (x - low).div_(scale).round_().clamp_(0, 2**bits - 1).mul_(scale).add_(low).to(groups.dtype)


def round_int8(x: Tensor) -> Tensor:
    """Round each token of a head, ``x`` [..., channels], to vLLM's 8-bit integers, in its dtype."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp_(min=LEAST_SCALE)
    codes = _half_away(wide * (1 / scale)).clamp_(-128, 127)
    return codes.mul_(scale).to(x.dtype)


def round_fp8(x: Tensor) -> Tensor:
    """Round each token of a head, ``x`` [..., channels], to E4M3 with a scale of its own, in its dtype."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / small_floats.E4M3_MAX).clamp_(min=LEAST_SCALE)
    return small_floats.round_e4m3(wide * (1 / scale)).mul_(scale).to(x.dtype)


def round_int4(x: Tensor) -> Tensor:
    """Round each token of a head, ``x`` [..., channels], to vLLM's 4-bit integers, in its dtype.

    They are of ``H D x``, random signs D and a Hadamard matrix H of the largest power of two that divides the channels.
    vLLM turns the queries and what is read, which is the same as turning back here.
    """
    channels = x.shape[-1]
    order = channels & -channels
    signs = _signs(order).to(x.device)
    blocks = x.float().unflatten(-1, (-1, order))
    turned = hadamard_transform(blocks * signs).flatten(-2).to(x.dtype).float()
    low, high = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_(min=LEAST_SCALE)
    zero = _half_away(-low / scale).clamp_(0, 15)
    codes = _half_away(turned * (1 / scale) + zero).clamp_(0, 15)
    # The zero point takes the place of the scale's lowest bits.
    read = (scale.view(torch.int32) & -16).view(torch.float32)
    restored = hadamard_transform((codes - zero).mul_(read).unflatten(-1, (-1, order)))
    return (restored / order * signs).flatten(-2).to(x.dtype)


def round_fixed(x: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Round ``x`` [..., heads, tokens, channels] to E4M3 with one scale, or one for each head, in its dtype."""
    scale = torch.tensor(scales, device=x.device).reshape(-1, 1, 1)
    return small_floats.round_e4m3(x.float() / scale).mul_(scale).to(x.dtype)


def hadamard_transform(x: Tensor) -> Tensor:
    """Multiply ``x`` [..., n], n a power of two, with Sylvester's Hadamard matrix, entries 1 and -1."""
    size, width = x.shape[-1], 1
    while width < size:
        pairs = x.unflatten(-1, (size // (2 * width), 2, width))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        width *= 2
    return x


def _half_away(x: Tensor) -> Tensor:
    """Round to the nearest whole number, halves away from zero, as vLLM's kernels do."""
    return (x + torch.where(x >= 0, 0.5, -0.5)).trunc_()


@functools.cache
def _signs(order: int) -> Tensor:
    generator = torch.Generator().manual_seed(SIGNS_SEED)
    return 2 * torch.bernoulli(torch.full((order,), 0.5), generator=generator) - 1
