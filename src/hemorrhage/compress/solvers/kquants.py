"""Quantizers of the GGUF block types, in torch: the weights of a matrix become the bytes of ggml's blocks.

Types whose codes are numbers are here, those with a table of values in hemorrhage.compress.solvers.iquants. The types
without a search (blocks of 32 without importances, Q8_0, the ternary TQ1_0 and TQ2_0) are the gguf package's.

A k-quant type codes super-blocks of 256 neighbouring weights of a row, cut into sub-blocks of 16 or 32. A
sub-block has a scale (Q3_K, Q6_K: ``w = d s q``) or a scale and a minimum (Q2_K, Q4_K, Q5_K: ``w = d s q - m
t``); s and t are small integers, d and m float16 numbers of the super-block. The search for a sub-block's
scale is that of ggml's reference: several roundings of the range are tried, for each the scale (and minimum)
that fits its codes best by weighted least squares, and the one with the least weighted error wins. Then the
scales of a super-block are rounded to their integers, and the codes are taken anew with the rounded scales.
Weights of the error, as there: functions of the weight itself; with importances (the mean square of each
input, llama.cpp's imatrix) those times ``sqrt(sigma² + w²)``, and the search over the scales of the
super-block is weighted too.

Sub-blocks lie along the second dimension here (``[weights of a sub-block, sub-blocks]``), so that a sum over
one is a sum of long vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemorrhage.compress.solvers import iquants
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SUPER = 256
"""Weights of a super-block."""

SMALL = 32
"""Weights of a block of the types without super-blocks."""

PIECE = 1024
"""Super-blocks that are searched at once: long vectors that still fit the processor's cache."""

NOTHING = 1e-15
"""A sub-block with no weight greater than this has the scale 0."""


@dataclass(frozen=True)
class Search:
    """Roundings of the range to try: ``first``, ``first + step`` ... codes more than the type has.

    ``tries`` and one of them; ``absolute``: the error sums absolute, not squared differences.
    """

    first: float
    step: float
    tries: int
    absolute: bool = False


WEIGHTED = Search(-0.9, 0.05, 36)
"""The search with importances, for all types that have a minimum."""


def quantize(weight: Tensor, ggml_type: str, importance: Tensor | None = None) -> Tensor:
    """Return the blocks of ``weight`` float32 [rows, columns]: uint8 [rows, bytes of a row].

    ``ggml_type`` is a type's name in lower case, ``importance`` float32 [columns]. Raises ValueError where the
    type is unknown or its blocks do not divide the columns.
    """
    if ggml_type not in WIDTHS:
        raise ValueError(f"{ggml_type} is no block type; allowed: {', '.join(WIDTHS)}")
    rows, columns = weight.shape
    if columns % WIDTHS[ggml_type]:
        raise ValueError(f"{columns} columns are no multiple of {ggml_type}'s blocks of {WIDTHS[ggml_type]}")
    if ggml_type in SUPER_TYPES:
        blocks = _by_pieces(weight, importance, SUPER, SUPER_TYPES[ggml_type])
    elif ggml_type in TABLE_TYPES:
        blocks = _by_pieces(weight, importance, SMALL, TABLE_TYPES[ggml_type])
    elif importance is None or ggml_type in UNWEIGHTED:
        return _by_package(weight, ggml_type)
    else:
        spread = weight.square().mean(1).repeat_interleave(columns // SMALL).unsqueeze(1)
        blocks = _by_pieces(weight, importance, SMALL, SMALL_TYPES[ggml_type], spread)
    return blocks.view(rows, -1)


def _by_package(weight: Tensor, ggml_type: str) -> Tensor:
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType[ggml_type.upper()]))


def _by_pieces(
    weight: Tensor, importance: Tensor | None, width: int, coder: Callable[..., Tensor], *more: Tensor
) -> Tensor:
    """Return the bytes [blocks, bytes of a block] that ``coder`` makes of blocks of ``width`` weights."""
    blocks = weight.reshape(-1, width)
    worth = None if importance is None else importance.expand_as(weight).reshape(-1, width)
    size = PIECE * SUPER // width
    return torch.cat(
        [
            coder(
                blocks[start : start + size],
                None if worth is None else worth[start : start + size],
                *(extra[start : start + size] for extra in more),
            )
            for start in range(0, len(blocks), size)
        ]
    )


# Searches. x is [weights of a sub-block, sub-blocks]; what is fitted has one value for each sub-block.


def fit_scale(x: Tensor, weights: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return scale [n] and codes [width, n] in -limit ... limit - 1 of the least weighted error (make_qx_quants)."""
    peak = x.gather(0, x.abs().argmax(0, keepdim=True)).squeeze(0)
    empty = peak.abs() < NOTHING
    peak = peak.masked_fill(empty, 1.0)
    # Of a scale that fits its codes, the squared error is sum(w x²) - sum(w x l)² / sum(w l²).
    scale = gain = chosen = torch.zeros_like(peak)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(limit + 0.1 * step) / peak
        codes = (x * inverse).round_().clamp_(-limit, limit - 1)
        weighted = weights * codes
        along = (weighted * x).sum(0)
        length = weighted.mul_(codes).sum(0)
        better = (length > 0) & (along.square() > gain * length)
        best = along / length
        scale = torch.where(better, best, scale)
        gain = torch.where(better, best * along, gain)
        chosen = torch.where(better, inverse, chosen)
    return scale.masked_fill(empty, 0.0), (x * chosen).round_().clamp_(-limit, limit - 1)


def fit_scale_and_minimum(x: Tensor, weights: Tensor, limit: int, search: Search) -> tuple[Tensor, Tensor]:
    """Return the scale and minimum (0 or positive, to subtract), each [n], for codes 0 ... limit (make_qkx2_quants)."""
    low = x.amin(0).clamp_(max=0)
    high = x.amax(0)
    flat = high <= low
    high = torch.where(flat, low + 1, high)
    total, mean = weights.sum(0), (weights * x).sum(0)

    def error(codes: Tensor, scale: Tensor, low: Tensor) -> Tensor:
        difference = (codes * scale).add_(low).sub_(x)
        difference = difference.abs_() if search.absolute else difference.square_()
        return difference.mul_(weights).sum(0)

    inverse = limit / (high - low)
    scale = 1 / inverse
    least = error(((x - low) * inverse).round_().clamp_(0, limit), scale, low)
    for step in range(search.tries + 1):
        # The best minimum so far is the lower end of the next range, as in the reference.
        inverse = (search.first + search.step * step + limit) / (high - low)
        codes = (x - low).mul_(inverse).round_().clamp_(0, limit)
        weighted = weights * codes
        first = weighted.sum(0)
        across = (weighted * x).sum(0)
        second = weighted.mul_(codes).sum(0)
        determinant = total * second - first.square()
        fitted = (total * across - mean * first) / determinant
        bottom = (second * mean - first * across) / determinant
        above = bottom > 0
        fitted = torch.where(above, across / second, fitted)
        bottom = bottom.masked_fill(above, 0.0)
        loss = error(codes, fitted, bottom)
        better = (determinant > 0) & (loss < least)
        least = torch.where(better, loss, least)
        scale = torch.where(better, fitted, scale)
        low = torch.where(better, bottom, low)
    return scale.masked_fill(flat, 0.0), -low


def refine(x: Tensor, weights: Tensor, codes: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return the scale [n] and ``codes``, changed one by one while that lessens the error (make_q3_quants)."""
    codes = codes.clone()
    along = (weights * x * codes).sum(0)
    length = (weights * codes.square()).sum(0)
    for _ in range(5):
        moved = False
        for index in range(len(x)):
            w, value, old = weights[index], x[index], codes[index]
            a, b = along - w * value * old, length - w * old.square()
            new = (value * b / a).round_().clamp_(low, high)
            a2, b2 = a + w * value * new, b + w * new.square()
            better = (a > 0) & (b > 0) & (new != old) & (a2.square() * length > along.square() * b2)
            codes[index] = torch.where(better, new, old)
            along = torch.where(better, a2, along)
            length = torch.where(better, b2, length)
            moved = moved or bool(better.any())
        if not moved:
            break
    return torch.where(length > 0, along / length, 0.0), codes


def fit_positive(x: Tensor, weights: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the scale [n] and codes 0 ... limit [width, n] of values that are 0 or positive (make_qp_quants)."""
    top = x.amax(0)
    empty = top < NOTHING
    top = top.masked_fill(empty, 1.0)
    chosen = limit / top
    least = (weights * (x - (x * chosen).round_() / chosen).square_()).sum(0)
    for step in (*range(-4, 0), *range(1, 5)):
        inverse = (limit + 0.1 * step) / top
        codes = (x * inverse).round_().clamp_(max=limit)
        loss = (weights * (x - codes / inverse).square_()).sum(0)
        better = loss < least
        least = torch.where(better, loss, least)
        chosen = torch.where(better, inverse, chosen)
    scale, codes = refine(x, weights, (x * chosen).round_().clamp_(0, limit), 0, limit)
    return scale.masked_fill(empty, 0.0), codes.masked_fill(empty, 0.0)


# The super-block types. x is [super-blocks, 256], worth the importances or None.


def _q2_k(x: Tensor, worth: Tensor | None) -> Tensor:
    d, m, scales, minima, codes = _with_minimum(x, worth, 16, 2, 15, Search(-0.5, 0.1, 15, absolute=True))
    return torch.cat([scales | (minima << 4), _quarters(codes, 2), d, m], dim=1)


def _q4_k(x: Tensor, worth: Tensor | None) -> Tensor:
    d, m, scales, minima, codes = _with_minimum(x, worth, 32, 4, 63, Search(-1.0, 0.1, 20))
    return torch.cat([d, m, _six_bits(scales, minima), _nibbles(codes)], dim=1)


def _q5_k(x: Tensor, worth: Tensor | None) -> Tensor:
    d, m, scales, minima, codes = _with_minimum(x, worth, 32, 5, 63, Search(-0.5, 0.1, 15))
    return torch.cat([d, m, _six_bits(scales, minima), _one_bit(codes >> 4), _nibbles(codes & 15)], dim=1)


def _q3_k(x: Tensor, worth: Tensor | None) -> Tensor:
    parts = _sub_blocks(x, 16)
    if worth is None:
        peak = parts.gather(0, parts.abs().argmax(0, keepdim=True))
        first = torch.where(peak.abs() < NOTHING, 0.0, parts * (-4 / peak)).round_().clamp_(-4, 3)
        fitted = refine(parts, parts.square(), first, -4, 3)[0].view(len(x), 16)
        largest = fitted.gather(1, fitted.abs().argmax(1, keepdim=True))
        step = largest / -32
        scales = torch.where(step == 0, 0.0, fitted / step).round_().clamp_(-32, 31)
    else:
        weights = _sub_blocks(_weights(x, worth, 2.0), 16)
        fitted = fit_scale(parts, weights, 4)[0].view(len(x), 16)
        best, codes = fit_scale(fitted.T.contiguous(), weights.sum(0).view(len(x), 16).T, 32)
        step, scales = best.unsqueeze(1), codes.T
    d = step.half()
    codes = _codes(x, d.float() * scales, None, 16, -4, 3)
    six = (scales + 32).to(torch.uint8)
    low, high = six & 15, six >> 4
    packed = torch.cat([low[:, :8] | (low[:, 8:] << 4), _shifted(high.view(-1, 4, 4), 2)], dim=1)
    return torch.cat([_one_bit(codes >> 2), _quarters(codes & 3, 2), packed, d.view(torch.uint8)], dim=1)


def _q6_k(x: Tensor, worth: Tensor | None) -> Tensor:
    parts = _sub_blocks(x, 16)
    weights = parts.square() if worth is None else _sub_blocks(worth, 16)
    fitted = fit_scale(parts, weights, 32)[0].view(len(x), 16)
    largest = fitted.gather(1, fitted.abs().argmax(1, keepdim=True))
    step = torch.where(largest.abs() < NOTHING, 0.0, largest / -128)
    scales = torch.where(step == 0, 0.0, fitted / step).round_().clamp_(-128, 127)
    d = step.half()
    codes = _codes(x, d.float() * scales, None, 16, -32, 31)
    # 128 weights at a time: the low halves of four rows of 32 in two bytes, their high bits in one.
    rows = codes.view(-1, 2, 4, 32)
    low, high = rows & 15, rows >> 4
    nibbles = low[:, :, :2] | (low[:, :, 2:] << 4)
    return torch.cat(
        [nibbles.flatten(1), _shifted(high, 2), scales.to(torch.int8).view(torch.uint8), d.view(torch.uint8)],
        dim=1,
    )


def _with_minimum(
    x: Tensor, worth: Tensor | None, width: int, bits: int, limit: int, search: Search
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return d and m (bytes of float16), sub-blocks' scales and minima in 0 ... ``limit``, codes, all uint8."""
    parts, number = _sub_blocks(x, width), SUPER // width
    if worth is None:
        weights = parts.abs() if search.absolute else parts.abs() + parts.square().mean(0).sqrt_()
        exact = [values.view(-1, number) for values in fit_scale_and_minimum(parts, weights, 2**bits - 1, search)]
        steps = [values.amax(1, keepdim=True).clamp_(min=0) / limit for values in exact]
        coded = [
            torch.where(step == 0, 0.0, values / step).round_().clamp_(0, limit)
            for values, step in zip(exact, steps, strict=True)
        ]
    else:
        weights = _sub_blocks(_weights(x, worth, 1.0 if bits == 2 else 2.0), width)
        sums = weights.sum(0).view(-1, number).T
        exact = [values.view(-1, number) for values in fit_scale_and_minimum(parts, weights, 2**bits - 1, WEIGHTED)]
        fitted = [fit_positive(values.T.contiguous(), sums, limit) for values in exact]
        steps, coded = [step.unsqueeze(1) for step, _ in fitted], [codes.T for _, codes in fitted]
    d, m = (step.half() for step in steps)
    codes = _codes(x, d.float() * coded[0], m.float() * coded[1], width, 0, 2**bits - 1)
    scales, minima = (values.to(torch.uint8).contiguous() for values in coded)
    return d.view(torch.uint8), m.view(torch.uint8), scales, minima, codes


# The types of blocks of 32 with importances. spread [blocks, 1]: mean square of the block's row.


def _q4_0(x: Tensor, worth: Tensor, spread: Tensor) -> Tensor:
    d, codes = _without_minimum(x, worth, spread, 8)
    return torch.cat([d, codes[:, :16] | (codes[:, 16:] << 4)], dim=1)


def _q5_0(x: Tensor, worth: Tensor, spread: Tensor) -> Tensor:
    d, codes = _without_minimum(x, worth, spread, 16)
    return torch.cat([d, _fifth_bit(codes), _low_halves(codes)], dim=1)


def _q4_1(x: Tensor, worth: Tensor, spread: Tensor) -> Tensor:
    d, m, codes = _with_own_minimum(x, worth, spread, 15)
    return torch.cat([d, m, _low_halves(codes)], dim=1)


def _q5_1(x: Tensor, worth: Tensor, spread: Tensor) -> Tensor:
    d, m, codes = _with_own_minimum(x, worth, spread, 31)
    return torch.cat([d, m, _fifth_bit(codes), _low_halves(codes)], dim=1)


def _with_own_minimum(x: Tensor, worth: Tensor, spread: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    weights = worth * (spread + x.square()).sqrt()
    fitted = fit_scale_and_minimum(x.T.contiguous(), weights.T.contiguous(), limit, WEIGHTED)
    d, m = (values.unsqueeze(1).half() for values in fitted)
    codes = _codes(x, d.float(), m.float(), SMALL, 0, limit)
    return d.view(torch.uint8), (-m).view(torch.uint8), codes


def _without_minimum(x: Tensor, worth: Tensor, spread: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    weights = worth * (spread + x.square()).sqrt()
    d = fit_scale(x.T.contiguous(), weights.T.contiguous(), limit)[0].unsqueeze(1).half()
    return d.view(torch.uint8), _codes(x, d.float(), None, SMALL, -limit, limit - 1)


SUPER_TYPES = {
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_xs": iquants.iq4_xs,
}
TABLE_TYPES = {"iq4_nl": iquants.iq4_nl, "mxfp4": iquants.mxfp4}
SMALL_TYPES = {"q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1}
UNWEIGHTED = ("q8_0", "tq1_0", "tq2_0")
"""Types of the package that have no use for importances."""

WIDTHS = dict.fromkeys((*SUPER_TYPES, "tq1_0", "tq2_0"), SUPER) | dict.fromkeys(
    (*SMALL_TYPES, *TABLE_TYPES, "q8_0"), SMALL
)
"""Weights of a block of each type."""


# Codes and bytes.


def _sub_blocks(x: Tensor, width: int) -> Tensor:
    """Return [super-blocks, 256] -> [width, sub-blocks]."""
    return x.reshape(-1, width).T.contiguous()


def _weights(x: Tensor, worth: Tensor, factor: float) -> Tensor:
    return worth * (factor * x.square().mean(1, keepdim=True) + x.square()).sqrt_()


def _codes(x: Tensor, scale: Tensor, minimum: Tensor | None, width: int, low: int, high: int) -> Tensor:
    """Return nearest codes uint8 of ``x`` [n, weights] for the scales (and minima) [n, sub-blocks]; ``low`` is 0."""
    parts = x.reshape(len(x), -1, width)
    if minimum is not None:
        parts = parts + minimum.unsqueeze(2)
    scale = scale.unsqueeze(2)
    codes = torch.where(scale == 0, 0.0, parts / scale).round_().clamp_(low, high)
    return (codes - low).to(torch.uint8).flatten(1)


def _shifted(parts: Tensor, bits: int) -> Tensor:
    """Return [n, ..., k, m] -> [n, rest]: k values of few ``bits`` side by side in a byte, the first lowest."""
    total = torch.zeros_like(parts.select(-2, 0))
    for index in range(parts.shape[-2]):
        total |= parts.select(-2, index) << (bits * index)
    return total.flatten(1)


def _quarters(codes: Tensor, bits: int) -> Tensor:
    """Return the codes of 2 bits [n, 256], four rows of 32 into 32 bytes."""
    return _shifted(codes.view(-1, 2, 4, 32), bits)


def _nibbles(codes: Tensor) -> Tensor:
    """Return the codes of 4 bits [n, 256], two rows of 32 into 32 bytes."""
    return _shifted(codes.view(-1, 4, 2, 32), 4)


def _one_bit(codes: Tensor) -> Tensor:
    """Return the codes of 1 bit [n, 256], eight rows of 32 into 32 bytes."""
    return _shifted(codes.view(-1, 1, 8, 32), 1)


def _six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """Return eight scales and minima of 6 bits in 12 bytes: the last four's high bits lie above the first four."""
    first = [values[:, :4] | ((values[:, 4:] >> 4) << 6) for values in (scales, minima)]
    return torch.cat([*first, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)], dim=1)


def _low_halves(codes: Tensor) -> Tensor:
    low = codes & 15
    return low[:, :16] | (low[:, 16:] << 4)


def _fifth_bit(codes: Tensor) -> Tensor:
    """Return the highest bits of 32 codes of 5 bits in 4 bytes, the first code's lowest."""
    bits = (codes >> 4).view(-1, 4, 8).transpose(1, 2)
    return _shifted(bits, 1)
