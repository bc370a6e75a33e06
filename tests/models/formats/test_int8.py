"""Weights of a byte each are read as compressed-tensors reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

from hemorrhage.models.formats.int8 import Int8Linear, read


def stored(groups: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of a [6, 16] weight with ``groups`` scales a row, and what compressed-tensors reads of them."""
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    strategy: dict[str, Any] = (
        {"strategy": "channel"} if groups == 1 else {"strategy": "group", "group_size": 16 // groups}
    )
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, **strategy)
    scale = weight.unflatten(1, (groups, -1)).abs().amax(-1) / 127
    codes = quantize(weight, scale, torch.zeros_like(scale), args, dtype=torch.int8)
    return {"weight": codes, "weight_scale": scale}, dequantize(codes, scale, args=args)


@pytest.mark.parametrize("groups", [1, 4])
def test_codes_times_scales(groups: int) -> None:
    tensors, theirs = stored(groups)
    layer = read(tensors, {"weights": {}})
    torch.testing.assert_close(layer.dense(), theirs.float())
    for row in range(6):
        for column in range(16):
            scale = tensors["weight_scale"][row, column // (16 // groups)]
            assert layer.dense()[row, column] == tensors["weight"][row, column] * scale
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ theirs.T.float())
    assert layer.stored().keys() == tensors.keys()
    assert (layer.out_features, layer.in_features) == (6, 16)


def test_an_input_scale_is_kept_for_those_who_round_inputs() -> None:
    layer = Int8Linear({**stored(1)[0], "input_scale": torch.tensor([0.5])}, {}, None)
    assert layer.stored()["input_scale"].tolist() == [0.5]


def test_what_is_no_symmetric_byte_is_refused() -> None:
    tensors, _ = stored(1)
    with pytest.raises(ValueError, match="only symmetric int8 weights are read"):
        read({**tensors, "weight_zero_point": torch.zeros(6, 1)}, {})
    with pytest.raises(ValueError, match=r"a weight of torch\.float32 with a scale"):
        read({**tensors, "weight": tensors["weight"].float()}, {})
    with pytest.raises(ValueError, match="a weight of None"):
        read({"weight_scale": tensors["weight_scale"]}, {})
    with pytest.raises(ValueError, match="only symmetric"):
        read(tensors, None)
