"""Floating-point numbers of 4 and 8 bits, and scales that are powers of two.

E2M1 (FP4), E4M3 (FP8) and E8M0 are those of the OCP Microscaling Formats (MX) specification, version 1.0. A byte holds
two numbers of E2M1, the first in its low half; a number is its sign's bit and the place of its magnitude in ``E2M1``.
"""

from __future__ import annotations

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

E2M1_MAX = 6.0

E4M3_MAX = 448.0

REAL = (torch.float16, torch.bfloat16, torch.float32)
"""Types of scales that are numbers as they are."""


def unpack_e2m1(octets: Tensor) -> Tensor:
    """Return the numbers float32 [..., 2n] that the bytes ``octets`` uint8 [..., n] hold."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=octets.device)
    codes = torch.stack([octets & 15, octets >> 4], dim=-1).flatten(-2)
    return table[codes.int()]


def round_e2m1(x: Tensor) -> Tensor:
    """Round ``x``, of any shape, to the nearest number of E2M1, to the even one of two.

    What is larger than the largest is the largest.
    """
    magnitude = x.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0)).to(x.dtype)
    return (x / step).round_().mul_(step).clamp_(-E2M1_MAX, E2M1_MAX)


def round_e4m3(x: Tensor) -> Tensor:
    """Round ``x``, of any shape, to the nearest number of E4M3; what is larger than the largest is the largest."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def powers_of_two(octets: Tensor) -> Tensor:
    """Return ``2^(byte - 127)`` in float32 of each of ``octets`` uint8, of any shape; 255 is no number."""
    return octets.view(torch.float8_e8m0fnu).float()


def is_scale(value: Tensor) -> bool:
    """Return whether ``value`` is one finite number above 0."""
    return value.numel() == 1 and value.dtype in REAL and bool(value.isfinite().all()) and bool((value > 0).all())
