"""Tests of kquants."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from hemorrhage.compress.solvers import kquants


def weights(rows: int = 3, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def dequantized(blocks: Tensor, kind: str) -> Tensor:
    """The weights that gguf's own reader sees."""
    return torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind.upper()]))


@pytest.mark.parametrize(
    ("kind", "decibels"),
    [
        *(("q2_k", 10), ("q3_k", 16), ("q4_k", 22), ("q5_k", 28), ("q6_k", 33), ("q8_0", 43), ("q4_0", 19)),
        *(("q5_1", 26), ("q4_1", 20), ("q5_0", 25), ("iq4_nl", 20), ("iq4_xs", 20), ("mxfp4", 17)),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_gguf_reads_back_what_was_quantized(kind: str, decibels: float, weighted: bool) -> None:
    W = weights()
    importance = torch.ones(W.shape[1]) if weighted else None
    error = dequantized(kquants.quantize(W, kind, importance), kind) - W
    assert 10 * torch.log10(W.square().sum() / error.square().sum()) > decibels


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"])
def test_types_without_a_search_are_ggufs_bit_for_bit(kind: str) -> None:
    W = weights(64)
    W[0] = 0
    expected = torch.from_numpy(quants.quantize(W.numpy(), GGMLQuantizationType[kind.upper()]))
    assert torch.equal(kquants.quantize(W, kind), expected)


def test_importances_lessen_the_error_where_they_are_large() -> None:
    W = weights()
    importance = torch.ones(W.shape[1])
    importance[::2] = 100
    errors = [
        (dequantized(kquants.quantize(W, "q3_k", chosen), "q3_k") - W)[:, ::2].square().sum()
        for chosen in (None, importance)
    ]
    assert errors[1] < errors[0]


def test_a_scale_that_fits_exactly_is_returned() -> None:
    codes = torch.tensor([[-4.0, 3.0], [2.0, -4.0], [1.0, 0.0]])
    scale, best = kquants.fit_scale(codes * torch.tensor([0.5, 0.25]), torch.ones(3, 2), 4)
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.25]))
    assert torch.equal(best, codes)


def test_zeros_have_no_scale() -> None:
    scale, codes = kquants.fit_scale(torch.zeros(4, 2), torch.ones(4, 2), 4)
    assert not scale.any()
    assert not codes.any()


def test_wrong_types_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="q9_k is no block type"):
        kquants.quantize(weights(), "q9_k")
    with pytest.raises(ValueError, match="300 columns"):
        kquants.quantize(weights(columns=300), "q4_k")
