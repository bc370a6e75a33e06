"""Numbers of 4 and 8 bits against their tables, written out from the specification."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

from hemorrhage.models.formats.small_floats import (
    E2M1,
    is_scale,
    powers_of_two,
    round_e2m1,
    round_e4m3,
    unpack_e2m1,
)


def e4m3(code: int) -> float:
    """The number of a byte of E4M3, of the specification's table 1: bias 7, no infinity, NaN where all else is set."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    magnitude = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


def e2m1(code: int) -> float:
    """The number of 4 bits of E2M1: bias 1."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -magnitude if code & 8 else magnitude


def test_two_numbers_of_e2m1_are_in_a_byte_the_first_in_its_low_half() -> None:
    octets = torch.arange(256, dtype=torch.uint8).view(2, 128)
    expected = [[e2m1(code & 15), e2m1(code >> 4)] for code in range(256)]
    assert torch.equal(unpack_e2m1(octets).view(256, 2), torch.tensor(expected))
    assert [e2m1(code) for code in range(8)] == list(E2M1)


def test_the_nearest_number_of_e2m1_is_taken_and_the_even_one_of_two() -> None:
    x = torch.cat([torch.linspace(-8, 8, 4097), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])])
    found = round_e2m1(x.clone())
    for value, rounded in zip(x.tolist(), found.tolist(), strict=True):
        distances = sorted((abs(abs(value) - number), code & 1, number) for code, number in enumerate(E2M1))
        assert abs(rounded) == distances[0][2], value
        assert rounded == 0 or (rounded < 0) == (value < 0)
    assert torch.equal(found, cast_to_fp4(x.clone()))


def test_the_nearest_number_of_e4m3_is_taken() -> None:
    numbers = sorted((e4m3(code), code & 1) for code in range(127))
    x = torch.cat([torch.linspace(0, 500, 2001), torch.tensor([number for number, _ in numbers])])
    for value, rounded in zip(x.tolist(), round_e4m3(x).tolist(), strict=True):
        assert rounded == min((abs(value - number), odd, number) for number, odd in numbers)[2], value
    octets = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(octets.nan_to_num(0.123), torch.tensor([e4m3(code) for code in range(256)]).nan_to_num(0.123))


def test_bytes_are_powers_of_two() -> None:
    found = powers_of_two(torch.arange(256, dtype=torch.uint8))
    assert found[:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert found[255].isnan()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(0.5), True),
        (torch.tensor([2.0], dtype=torch.bfloat16), True),
        (torch.tensor(0.0), False),
        (torch.tensor(-1.0), False),
        (torch.tensor(math.inf), False),
        (torch.tensor(math.nan), False),
        (torch.tensor(1), False),
        (torch.ones(2), False),
        (torch.empty(0), False),
    ],
)
def test_a_scale_is_one_finite_number_above_0(value: torch.Tensor, expected: bool) -> None:
    assert is_scale(value) == expected
