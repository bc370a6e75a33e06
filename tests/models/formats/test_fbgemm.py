"""FBGEMM's FP8, against its definition: what ``quantize_fp8_per_row`` of fbgemm_gpu divides by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hemorrhage.models.emulation.activations import FloatRounding, rounding_of
from hemorrhage.models.formats import reader
from hemorrhage.models.formats.fbgemm import describe, read_published
from tests.models.formats.damage import read_damaged

QUANTIZATION = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 3.0}


def stored() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(20, 77, generator=generator) * 100).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.rand(20, 1, generator=generator) + 0.01}


def test_a_row_is_its_codes_times_its_scale_and_a_token_is_rounded_up_to_the_limit() -> None:
    layer = read_published(stored(), QUANTIZATION, "a")
    assert torch.equal(layer.dense(), stored()["weight"].float() * stored()["weight_scale"])
    _, layers = reader.read({f"a.{suffix}": value for suffix, value in layer.stored().items()}, None)
    again = layers["a"]
    assert torch.equal(again.dense(), layer.dense())
    assert again.inputs is not None
    rounding = rounding_of("a", again.inputs, again.stored())
    assert rounding == FloatRounding(8, "token", limit=3.0)
    x = torch.randn(5, 77, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.1, 1, 2, 4, 8])[:, None]
    for token, rounded in zip(x, rounding.round(x), strict=True):
        scale = min(float(token.abs().max()), 3.0) / 448
        expected = (token / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        torch.testing.assert_close(rounded, expected)
        assert rounded.abs().max() <= 3.0001


def test_the_label_and_what_is_wrong() -> None:
    assert describe({}) == "FBGEMM FP8 per row, inputs FP8 per token up to 1200"
    with pytest.raises(ValueError, match="quantization_config's activation_scale_ub: Input should be a valid number"):
        describe({"activation_scale_ub": "x"})
    with pytest.raises(ValueError, match=r"weight_scale \[20\] is not one for each row"):
        read_published({**stored(), "weight_scale": torch.ones(20)}, {}, "a")
    layers, lines = read_damaged(lambda tensors: read_published(tensors, QUANTIZATION, "a"), stored(), 40)
    assert not any(layer.dense().isnan().any() for layer in layers)
    assert len(lines) > 15
