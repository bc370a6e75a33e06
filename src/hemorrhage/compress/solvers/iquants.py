"""Quantizers of the GGUF block types whose codes stand for the values of a table: IQ4_NL, IQ4_XS, MXFP4.

IQ4_NL has blocks of 32 with a float16 scale; IQ4_XS super-blocks of 256 whose eight scales are 6-bit multiples of a
float16 number. Their table has 16 values that lie closer around zero. The search for a scale is that of ggml's
reference: 15 scales around the one that maps the greatest weight onto the table's end are tried, for each the nearest
values, and of these the scale that fits best by weighted least squares. Weights of the error, as there: x², or with
importances those times ``sqrt(sigma² + x²)``. MXFP4 (Open Compute Project's microscaling format, E2M1 with a power of
two for 32 weights) has no search and no weights.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""

E2M1_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""The middles between E2M1's magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6."""

TRIES = 7
"""Scales that are tried on both sides of the first."""

SMALL = 32
"""Weights that share a scale."""

NOTHING = 1e-15
"""A block with no weight greater than this has the scale 0."""


def iq4_nl(x: Tensor, worth: Tensor | None) -> Tensor:
    """Return the bytes [blocks, 18] of ``x`` float32 [blocks, 32]; ``worth``: importances of the same shape."""
    scale = _fit(x, _error_weights(x, worth))
    codes = _nearest(x.T * _inverse(scale)).T
    return torch.cat([scale.half().unsqueeze(1).view(torch.uint8), _halves(codes)], dim=1)


def iq4_xs(x: Tensor, worth: Tensor | None) -> Tensor:
    """Return the bytes [super-blocks, 136] of ``x`` float32 [super-blocks, 256]; ``worth``: importances."""
    parts, weights = x.reshape(-1, SMALL), _error_weights(x, worth).reshape(-1, SMALL)
    fitted = _fit(parts, weights).view(len(x), -1)
    largest = fitted.gather(1, fitted.abs().argmax(1, keepdim=True))
    step = largest / -32
    scales = (fitted * _inverse(step)).round_().clamp_(-32, 31)
    codes = _nearest(parts.T * _inverse((step * scales).flatten())).T
    six = (scales + 32).to(torch.uint8)
    low, high = six & 15, six >> 4
    # Two bits of each scale fill a number of 16 bits, the first scale's lowest.
    octets = (high.view(-1, 2, 4) << torch.arange(0, 8, 2, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    nibbles = low[:, ::2] | (low[:, 1::2] << 4)
    return torch.cat([step.half().view(torch.uint8), octets, nibbles, _halves(codes).reshape(len(x), -1)], dim=1)


def mxfp4(x: Tensor, _worth: Tensor | None) -> Tensor:
    """Return the bytes [blocks, 17] of ``x`` float32 [blocks, 32]."""
    # The exponent of the greatest weight, as log2 in float32 has it.
    peak = x.abs().amax(1).double()
    exponent = (peak.log2().float().floor() + (127 - 2)).clamp_(min=0)
    exponent = torch.where(peak > 0, exponent, 0.0)
    magnitudes = x.abs().double() * torch.exp2(127 - exponent.double()).unsqueeze(1)
    codes = torch.zeros_like(x, dtype=torch.uint8)
    for bound in E2M1_BOUNDS:
        codes += magnitudes > bound
    codes += 8 * ((x < 0) & (codes > 0)).to(torch.uint8)
    return torch.cat([exponent.to(torch.uint8).unsqueeze(1), _halves(codes)], dim=1)


def _error_weights(x: Tensor, worth: Tensor | None) -> Tensor:
    square = x.square()
    return square if worth is None else worth * (2 * square.mean(1, keepdim=True) + square).sqrt_()


def _fit(blocks: Tensor, error_weights: Tensor) -> Tensor:
    """Return the scale [n] of each of ``blocks`` [n, 32]."""
    x, weights = blocks.T.contiguous(), error_weights.T.contiguous()
    peak = x.gather(0, x.abs().argmax(0, keepdim=True)).squeeze(0)
    empty = peak.abs() < NOTHING
    peak = peak.masked_fill(empty, 1.0)
    scale = gain = torch.zeros_like(peak)
    for end in (-VALUES[0], *(VALUES[0] + step for step in range(-TRIES, TRIES + 1))):
        values = _values(x * (end / peak))
        weighted = weights * values
        along = (weighted * x).sum(0)
        length = weighted.mul_(values).sum(0)
        better = (length > 0) & (along.square() > gain * length)
        best = along / length
        scale = torch.where(better, best, scale)
        gain = torch.where(better, best * along, gain)
    return scale.masked_fill(empty, 0.0)


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Return the nearest value, and its code, of numbers in steps of a half from -128: a middle belongs to the next."""
    values = torch.tensor(VALUES, dtype=torch.float32)
    codes = torch.bucketize(torch.arange(-256, 256) / 2, (values[1:] + values[:-1]) / 2, right=True)
    return values[codes], codes.to(torch.uint8)


def _values(x: Tensor) -> Tensor:
    return _tables()[0].index_select(0, _places(x)).view(x.shape)


def _nearest(x: Tensor) -> Tensor:
    return _tables()[1].index_select(0, _places(x)).view(x.shape)


def _places(x: Tensor) -> Tensor:
    return (x * 2).floor_().clamp_(-256, 255).add_(256).to(torch.int32).reshape(-1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _halves(codes: Tensor) -> Tensor:
    """Return codes of 4 bits [n, 32] in 16 bytes: the first half's low, the second's high."""
    return codes[:, :16] | (codes[:, 16:] << 4)
