"""Grids of cached keys and values against their definitions, number by number, and compressed-tensors."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from torch import Tensor

from hemorrhage.models.emulation import cache_grids
from hemorrhage.models.formats.small_floats import E4M3_MAX


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def single(x: float) -> float:
    """The nearest float32."""
    return torch.tensor(x).item()


def half_away(x: float) -> int:
    return int(x + 0.5) if x >= 0 else int(x - 0.5)


def between(group: list[float], bits: int) -> list[float]:
    """A group on KIVI's grid, number by number; the smallest and the scale are kept in float16."""
    least = float(torch.tensor(min(group)).half())
    step = float(torch.tensor((max(group) - min(group)) / (2**bits - 1)).half())
    return [least + step * max(0, min(2**bits - 1, round((x - least) / step))) for x in group]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kivis_grid_is_from_the_smallest_to_the_largest(bits: int) -> None:
    groups = random(6, 16) + torch.tensor([[0.0], [7.0], [-7.0], [100.0], [0.5], [-0.5]])
    for group, found in zip(groups.tolist(), cache_grids.round_range(groups, bits).tolist(), strict=True):
        assert found == pytest.approx(between(group, bits), abs=1e-4)
    alike = torch.full((2, 8), -3.25)
    assert torch.equal(cache_grids.round_range(alike, bits), alike)


def literal_int8(token: list[float]) -> list[float]:
    """vLLM's kernel: scale = absmax / 127, at least 1e-6; halves go away from zero, then a cut to int8."""
    scale = single(max(max(map(abs, token)) / 127, 1e-6))
    return [max(-128, min(127, half_away(single(x * single(1 / scale))))) * scale for x in token]


def test_8_bits_per_token_and_head_are_those_of_vllm() -> None:
    x = random(3, 2, 5, 16) * torch.tensor([0.01, 1.0, 40.0])[:, None, None, None]
    x[0, 0, 0] = 0
    x[0, 0, 1] = torch.tensor([127.0, 0.5, -0.5, 1.5, -2.5, 3.0, 0.0, 126.5] * 2)
    found = cache_grids.round_int8(x)
    for token, rounded in zip(x.flatten(0, 2).tolist(), found.flatten(0, 2).tolist(), strict=True):
        assert rounded == pytest.approx(literal_int8(token), rel=1e-6, abs=1e-9)
    assert found[0, 0, 1, 1:5].tolist() == [1, -1, 2, -3]


@pytest.mark.parametrize("channels", [8, 12, 80])
def test_4_bits_per_token_and_head_are_those_of_vllm(channels: int) -> None:
    x, order = random(6, channels) + 0.3, channels & -channels
    generator = torch.Generator().manual_seed(0x9E3779B9)
    signs = (2.0 * torch.bernoulli(torch.full((order,), 0.5), generator=generator) - 1.0).tolist()
    hadamard = torch.ones(1, 1)
    while len(hadamard) < order:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    found = cache_grids.round_int4(x)
    for token, rounded in zip(x.tolist(), found.tolist(), strict=True):
        turned: list[float] = []
        for start in range(0, channels, order):
            block = [sign * value for sign, value in zip(signs, token[start : start + order], strict=True)]
            turned += (hadamard @ torch.tensor(block)).tolist()
        low, high = min(turned), max(turned)
        scale = max((high - low) / 15, 1e-6)
        zero = max(0, min(15, half_away(-low / scale)))
        codes = [max(0, min(15, half_away(value / scale + zero))) for value in turned]
        read = torch.tensor([(code - zero) * scale for code in codes])
        back = torch.cat([hadamard @ part / order for part in read.split(order)]).tolist()
        expected = [sign * value for sign, value in zip(signs * (channels // order), back, strict=True)]
        assert rounded == pytest.approx(expected, abs=2e-4)


def test_fp8_per_token_and_head_has_the_largest_at_448() -> None:
    x = random(4, 16)
    x[3] = 0
    for token, rounded in zip(x.tolist(), cache_grids.round_fp8(x).tolist(), strict=True):
        scale = max(max(map(abs, token)) / E4M3_MAX, 1e-6)
        for value, number in zip(token, rounded, strict=True):
            # Three bits behind the point of a number of E4M3, whose smallest binade is 2^-6.
            exponent = max(math.floor(math.log2(abs(value) / scale)), -6) if value else -6
            assert abs(number - value) <= scale * 2.0 ** (exponent - 3) / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("strategy", "shape"), [("tensor", (1,)), ("attn_head", (3, 1, 1))])
def test_fixed_scales_are_those_of_compressed_tensors(strategy: str, shape: tuple[int, ...]) -> None:
    x = 300 * random(2, 3, 5, 8)
    scales = random(*shape, seed=1).abs() + 0.1
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, dynamic=False, symmetric=True)
    theirs = fake_quantize(x, scales, torch.zeros(shape), args)
    assert torch.equal(cache_grids.round_fixed(x, tuple(scales.flatten().tolist())), theirs)


def test_hadamard_transform_is_the_product_with_the_matrix() -> None:
    matrix = cache_grids.hadamard_transform(torch.eye(8))
    assert torch.equal(matrix @ matrix.T, 8 * torch.eye(8))
    assert set(matrix.flatten().tolist()) == {1.0, -1.0}
    assert matrix[1].tolist() == [1, -1] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_stay(dtype: torch.dtype) -> None:
    x = random(2, 3, 8).to(dtype)
    before = x.clone()
    rounded = [
        cache_grids.round_groups(x, 4),
        cache_grids.round_range(x, 4),
        cache_grids.round_int8(x),
        cache_grids.round_int4(x),
        cache_grids.round_fp8(x),
        cache_grids.round_fixed(x, (0.01, 0.02)) if x.shape[-3] == 2 else x,
    ]
    assert {each.dtype for each in rounded} == {dtype}
    assert all(bool((each.float() - x.float()).abs().max() < 0.5) for each in rounded)
    assert torch.equal(x, before)
