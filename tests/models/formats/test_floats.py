"""Layers of small floats against Python's arithmetic of their tables."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.models.formats.config import QuantizationArgs
from hemorrhage.models.formats.floats import FloatLinear, read


def test_fp4_with_scales_that_a_layer_divides() -> None:
    octets = torch.tensor([[0x21, 0xF7] * 4, [0x00, 0x98] * 4], dtype=torch.uint8)
    scale = torch.tensor([[2.0], [0.5]]).to(torch.float8_e4m3fn)
    stored = {"weight_packed": octets, "weight_scale": scale, "weight_global_scale": torch.tensor([4.0])}
    layer = read(stored, {"weights": {"type": "float", "num_bits": 4, "group_size": 16}})
    assert (layer.out_features, layer.in_features) == (2, 16)
    # Low halves first: 1 is 0.5, 2 is 1, 7 is 6, 15 is -6, 8 is -0, 9 is -0.5.
    assert layer.dense()[0, :4].tolist() == [0.25, 0.5, 3.0, -3.0]
    assert layer.dense()[1, :4].tolist() == [0.0, 0.0, 0.0, -0.0625]


def test_powers_of_two_blocks_rows_and_whole_layers() -> None:
    weight = torch.ones(3, 5).to(torch.float8_e4m3fn)
    shapes = {
        (1,): torch.full((3, 5), 2.0),
        (3, 1): torch.tensor([[2.0], [3.0], [4.0]]).expand(3, 5),
        (2, 3): torch.tensor([[2.0, 2, 3, 3, 4], [2, 2, 3, 3, 4], [5, 5, 6, 6, 7]]),
    }
    for shape, expected in shapes.items():
        scale = torch.arange(2.0, 2 + torch.Size(shape).numel()).reshape(shape).bfloat16()
        arguments: QuantizationArgs = {"type": "float"}
        if shape == (2, 3):
            arguments["block_structure"] = [2, 2]
        layer = read({"weight": weight, "weight_scale": scale}, {"weights": arguments})
        assert torch.equal(layer.dense(), expected)
    exponents = torch.tensor([[127], [126], [130]], dtype=torch.uint8)
    layer = read({"weight": weight, "weight_scale": exponents}, {"weights": {"type": "float"}})
    assert layer.dense()[:, 0].tolist() == [1.0, 0.5, 8.0]


def test_a_layer_computes_with_its_dense_weight_and_needs_a_group() -> None:
    weight = torch.randn(4, 6).to(torch.float8_e4m3fn)
    layer = FloatLinear({"weight": weight, "weight_scale": torch.tensor([0.5])}, {"weights": {"type": "float"}}, None)
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer(x), x @ (0.5 * weight.float()).T)
    with pytest.raises(ValueError, match="quantization_config"):
        read({"weight": weight, "weight_scale": torch.tensor([0.5])}, None)
