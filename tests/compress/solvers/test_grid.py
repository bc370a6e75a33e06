"""Tests of grid."""

from __future__ import annotations

import torch
from torch import Tensor

from hemorrhage.compress.methods.weight_quantization import gptq, rtn


def layer(rows: int = 12, columns: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, x.T @ x / len(x)


def test_scales_are_those_that_a_bfloat16_checkpoint_can_hold() -> None:
    weight, moment = layer()
    settings = gptq.Settings(bits=4, group_size=16)
    for ours in (
        rtn.quantize(weight, 16, settings, torch.bfloat16),
        *gptq.quantize([weight], moment, 16, settings, torch.bfloat16),
    ):
        assert ours.scale.dtype == torch.bfloat16
        assert ours.zero is not None
        half = 2 ** (settings.bits - 1)
        scaled = weight.unflatten(1, (-1, 16)) / ours.scale.float().unsqueeze(2)
        nearest = (scaled + ours.zero.unsqueeze(2)).round().clamp(-half, half - 1).flatten(1)
        first = torch.arange(0, 48, 48)  # the first column is rounded before any update, in both methods
        assert torch.equal(nearest[:, first], ours.codes[:, first].float())
