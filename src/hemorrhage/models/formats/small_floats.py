"""Floating-point numbers of 4 and 8 bits, and scales that are powers of two.

E2M1 (FP4), E4M3 (FP8) and E8M0 are those of the OCP Microscaling Formats (MX) specification, version 1.0. A byte holds
two numbers of E2M1, the first in its low half; a number is its sign's bit and the place of its magnitude in ``E2M1``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationArgs

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


def nearest_e2m1_(x: Tensor) -> Tensor:
    """Round float32 ``x`` in place as ``round_e2m1`` does, in fewer passes.

    A number of which the last bit is worth half its binade, when it is added and taken away, leaves whole halves.
    """
    exponents = x.view(torch.int32).bitwise_and(0x7F800000)
    large = exponents.view(torch.float32).clamp_(1.0, 4.0).mul_(1.5 * 2**22)
    return x.add_(large).sub_(large).clamp_(-E2M1_MAX, E2M1_MAX)


def nearest_e4m3_(x: Tensor) -> Tensor:
    """Round float32 ``x`` in place as ``round_e4m3`` does."""
    return x.copy_(x.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn))


def pack_e2m1(numbers: Tensor) -> Tensor:
    """Return the bytes uint8 [rows, columns / 2] of ``numbers`` of E2M1 [rows, columns], of any type that holds them.

    Raises ValueError where a row has an odd number of them.
    """
    if numbers.shape[1] % 2:
        raise ValueError(f"rows of {numbers.shape[1]} numbers of 4 bits do not fill whole bytes")
    # As E4M3 a number of 1 or more has two bits of the exponent and one of the mantissa where they are wanted.
    octets = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    magnitudes = octets.bitwise_and(0x7F)
    codes = magnitudes.clamp(min=0x30).sub_(0x30).bitwise_right_shift_(2)
    # A half is 0x30, and 1; zero is 0.
    codes = torch.maximum(codes, magnitudes.clamp_(max=1)).bitwise_or_(octets.bitwise_and(0x80).bitwise_right_shift_(4))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def power_of_two(largest: Tensor, bits: int) -> Tensor:
    """Return the powers of two that bring ``largest``, float32 of any shape, into the last binade of the numbers.

    ``bits``: 8 for E4M3, 4 for E2M1. What is above 1.75 times a power counts as the next one: it would round to it in a
    number of one bit's mantissa. Zeros have the smallest power.
    """
    mantissa, exponent = torch.frexp(largest)
    binade = exponent - 1 + (mantissa >= 0.875).int()
    last = 8 if bits == 8 else 2
    exponents = torch.where(largest == 0, -127, (binade - last).clamp(min=-127))
    return torch.ldexp(torch.ones_like(largest), exponents)


def round_e4m3(x: Tensor) -> Tensor:
    """Round ``x``, of any shape, to the nearest number of E4M3; what is larger than the largest is the largest."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def powers_of_two(octets: Tensor) -> Tensor:
    """Return ``2^(byte - 127)`` in float32 of each of ``octets`` uint8, of any shape; 255 is no number."""
    return octets.view(torch.float8_e8m0fnu).float()


def exponent_bytes(powers: Tensor) -> Tensor:
    """Return the bytes uint8 whose ``powers_of_two`` are ``powers`` float32, of any shape."""
    return (torch.frexp(powers).exponent + 126).to(torch.uint8)


def is_scale(value: Tensor) -> bool:
    """Return whether ``value`` is one finite number above 0."""
    return value.numel() == 1 and value.dtype in REAL and bool(value.isfinite().all()) and bool((value > 0).all())


def step_sizes(scale: Tensor, total: Tensor | None) -> Tensor:
    """Return what numbers are multiplied with, float32 of 2 dimensions, of a weight's ``scale`` as it is stored.

    Bytes are exponents of two; ``total`` [1] divides scales of E4M3.
    """
    steps = powers_of_two(scale) if scale.dtype == torch.uint8 else scale.float()
    steps = steps.reshape(1, 1) if steps.numel() == 1 and steps.dim() == 1 else steps
    return steps if total is None else steps / total.float().reshape(1, 1)


def area(steps: Tensor, shape: tuple[int, int], weights: QuantizationArgs) -> tuple[int, int]:
    """Return how many rows and columns of a weight of ``shape`` share one of its ``steps`` [.., ..]."""
    structure = weights.get("block_structure")
    if structure:
        return structure[0], structure[1]
    rows, columns = shape
    return rows // steps.shape[0], columns // steps.shape[1]


def multiplied(numbers: Tensor, steps: Tensor, area: tuple[int, int], first: int = 0) -> Tensor:
    """Return ``numbers`` float32 [rows, columns], the rows of a weight from ``first`` on, times their ``steps``.

    ``area``: rows and columns of the weight that share one of them.
    """
    rows, columns = (torch.arange(count, device=steps.device) for count in numbers.shape)
    return numbers * steps[(rows + first) // area[0]][:, columns // area[1]]
