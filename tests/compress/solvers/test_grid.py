"""Tests of grid."""

from __future__ import annotations

import torch

from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from tests.compress.made import layer


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
