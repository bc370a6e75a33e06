"""Packed integers of a rotated matrix, turned back by matrices written out."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from hemorrhage.models.formats.rotated import build_rotation, read, rotated_linear

OUTWARD, INWARD = (5, 2, 4, True), (6, 3, 4, False)


def turned_and_stored(symmetric: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A matrix [8, 12] on a grid of 4 bits with a scale a row, and its tensors."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (8, 12), generator=generator)
    scale = torch.rand(8, 1, generator=generator) + 0.5
    zero = None if symmetric else torch.randint(-8, 8, (8, 1), generator=generator)
    values = scale * (codes - (0 if zero is None else zero))
    packed = {
        "weight_packed": pack_to_int32(codes.to(torch.int8), 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor([8, 12]),
    }
    if zero is not None:
        packed["weight_zero_point"] = pack_to_int32(zero.to(torch.int8), 4, packed_dim=0).contiguous()
    return values, packed


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_weight_is_turned_back_out_of_both_bases(symmetric: bool) -> None:
    values, packed = turned_and_stored(symmetric)
    layer = rotated_linear(packed, 4, OUTWARD, INWARD, None)
    torch.testing.assert_close(layer.rotated_weight(), values)
    u, v = (build_rotation(origin).rotate(torch.eye(width)) for origin, width in ((OUTWARD, 8), (INWARD, 12)))
    torch.testing.assert_close(layer.dense(), u @ values @ v.T, rtol=1e-4, atol=1e-5)
    again = read(layer.stored(), None)
    assert torch.equal(again.dense(), layer.dense())
    assert all(name.startswith("rotat") for name in layer.stored())
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ layer.dense().T)
