"""Tests of iquants: each quantizer against one block at a time, in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from hemorrhage.compress.solvers.iquants import VALUES, iq4_nl, iq4_xs, mxfp4


def weights(rows: int = 6, columns: int = 256) -> Tensor:
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    W[1] *= 40
    W[2, :32] = 0
    W[3] = 0
    return W


def nearest(x: float) -> int:
    """The code of the nearest value; a middle belongs to the greater one."""
    return min(range(16), key=lambda code: (abs(VALUES[code] - x), -code))


def scale_of(x: list[float], weight: list[float]) -> float:
    """The scale that ggml's reference finds for one block, in float64."""
    peak = max(x, key=abs)
    if abs(peak) < 1e-15:
        return 0.0
    best = scale = 0.0
    for end in (127, *(-127 + step for step in range(-7, 8))):
        values = [VALUES[nearest(end / peak * each)] for each in x]
        along = sum(w * q * each for w, q, each in zip(weight, values, x, strict=True))
        length = sum(w * q * q for w, q in zip(weight, values, strict=True))
        if along * along > best * length:
            scale, best = along / length, along * along / length
    return scale


def dequantized(blocks: Tensor, kind: str) -> Tensor:
    return torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind]))


@pytest.mark.parametrize("is_weighted", [False, True])
def test_scales_of_iq4_nl_are_the_references(is_weighted: bool) -> None:
    x = weights().view(-1, 32)
    worth = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) if is_weighted else None
    error = x.square() if worth is None else worth * (2 * x.square().mean(1, keepdim=True) + x.square()).sqrt()
    expected = [scale_of(row, weight) for row, weight in zip(x.double().tolist(), error.double().tolist(), strict=True)]
    blocks = iq4_nl(x, worth)
    scales = blocks[:, :2].contiguous().view(torch.float16).flatten()
    torch.testing.assert_close(scales, torch.tensor(expected).half(), rtol=1e-3, atol=0)
    codes = torch.tensor(
        [
            [nearest(each / scale) if scale else nearest(0.0) for each in row]
            for row, scale in zip(x.tolist(), expected, strict=True)
        ],
        dtype=torch.uint8,
    )
    assert torch.equal(blocks[:, 2:], codes[:, :16] | (codes[:, 16:] << 4))


def test_scales_of_iq4_xs_are_multiples_of_one() -> None:
    x = weights()
    blocks = iq4_xs(x, None)
    parts = x.view(-1, 8, 32).double().tolist()
    fitted = np.array([[scale_of(part, [each**2 for each in part]) for part in row] for row in parts])
    step = np.array([row[np.abs(row).argmax()] for row in fitted]) / -32
    torch.testing.assert_close(blocks[:, :2].contiguous().view(torch.float16).flatten(), torch.tensor(step).half())
    multiples = np.divide(fitted, step[:, None], where=step[:, None] != 0, out=np.zeros_like(fitted))
    six = np.clip(np.rint(multiples), -32, 31) + 32
    high = blocks[:, 2:4].contiguous().view(torch.int16).int() & 0xFFFF
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=2).flatten(1)
    found = low + 16 * ((high >> torch.arange(0, 16, 2)) & 3)
    assert np.array_equal(found.numpy(), six)


@pytest.mark.parametrize(("kind", "quantize", "decibels"), [("IQ4_NL", iq4_nl, 20), ("IQ4_XS", iq4_xs, 20)])
def test_gguf_reads_back_what_was_quantized(kind: str, quantize: object, decibels: float) -> None:
    x = weights() if kind == "IQ4_XS" else weights().view(-1, 32)
    assert callable(quantize)
    error = dequantized(quantize(x, None), kind) - x
    assert 10 * torch.log10(x.square().sum() / error.square().sum()) > decibels
    assert not error[x == 0].any() or kind == "IQ4_XS"


def test_mxfp4_is_ggufs_bit_for_bit() -> None:
    """Middles between two values, powers of two and what log2 rounds up to one are among the weights."""
    x = weights(64).view(-1, 32) * torch.randn(512, 1, generator=torch.Generator().manual_seed(2)).mul(6).exp2()
    x[0, :16] = torch.tensor([0.25, -0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, 6, -0.75, -6, 8 - 2**-21, 0, 1, -0.0])
    x[1], x[1, 0] = 0.1, 4.0
    expected = quants.quantize(x.numpy(), GGMLQuantizationType.MXFP4)
    assert np.array_equal(mxfp4(x, None).numpy(), expected)
