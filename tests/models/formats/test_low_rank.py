"""A linear layer as the product of two thin ones."""

from __future__ import annotations

import torch

from hemorrhage.models.formats.low_rank import LowRankLinear, read


def test_it_computes_both_factors_and_stands_for_their_product() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, outer, bias = (torch.randn(shape, generator=generator) for shape in ((3, 10), (7, 3), (7,)))
    layer = LowRankLinear(inner, outer, torch.nn.Parameter(bias))
    x = torch.randn(2, 4, 10, generator=generator)
    dense = torch.tensor([[sum(outer[i, r] * inner[r, j] for r in range(3)) for j in range(10)] for i in range(7)])
    torch.testing.assert_close(layer.dense(), dense)
    torch.testing.assert_close(layer(x), x @ dense.T + bias, rtol=1e-4, atol=1e-5)
    assert (layer.in_features, layer.out_features, layer.parameters_count) == (10, 7, 51)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    again = read(layer.stored(), None)
    assert torch.equal(again.dense(), layer.dense())
    assert again.bias is None
