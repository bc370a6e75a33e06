"""A layer that computes with the weights its kind makes of what it stores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hemorrhage.models.formats.dequantized import DequantizedLinear


class Halves(DequantizedLinear):
    """Stores twice its weight."""

    def dense(self) -> torch.Tensor:
        twice: torch.Tensor = self.tensors["twice"].data
        return twice.float() / 2


def test_it_computes_with_its_dense_weight_and_its_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    layer = Halves((3, 5), {"twice": 2 * weight}, nn.Parameter(bias))
    x = torch.randn(4, 5, generator=generator)
    torch.testing.assert_close(layer(x), x @ weight.T + bias)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert (layer.out_features, layer.in_features, layer.parameters_count) == (3, 5, 15)
    assert torch.equal(layer.stored()["twice"], 2 * weight)
    assert not any(value.requires_grad for name, value in layer.named_parameters() if name != "bias")


def test_what_is_stored_moves_and_is_saved_with_the_model() -> None:
    layer = Halves((1, 2), {"twice": torch.tensor([[2.0, 4.0]])}, None)
    assert set(layer.state_dict()) == {"tensors.twice"}
    assert layer.to(torch.float64).stored()["twice"].dtype == torch.float64


def test_a_kind_has_to_say_what_it_stands_for() -> None:
    with pytest.raises(NotImplementedError):
        DequantizedLinear((1, 1), {}, None).dense()
