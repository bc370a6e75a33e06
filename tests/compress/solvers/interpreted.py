"""Sweeps layers in strips by Triton's interpreter and column by column, and prints what share of each is the same.

python -m tests.compress.solvers.interpreted, with TRITON_INTERPRET=1: Triton reads it when it is imported.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers import strip
from hemorrhage.compress.solvers.columns import Layers
from tests.compress.made import layer
from tests.compress.solvers.test_rounded_sweep import tensors

CASES: dict[str, list[dict[str, Any]]] = {
    "integers of four widths": [{"bits": bits, "group_size": 16} for bits in (8, 4, 3, 2)],
    "symmetric integers": [{"bits": 4, "group_size": 8, "symmetric": True}, {"bits": 3, "group_size": 8}],
    "zeros kept": [{"bits": 3, "group_size": 16, "keep_zeros": True}],
    "groups wider than a strip": [{"bits": 4, "group_size": 48}],
    "groups that do not divide a strip": [{"bits": 4, "group_size": 12}],
    "channels": [{"bits": 4, "group_size": "channel"}, {"format": "fp8"}, {"format": "fp8_tensor"}],
    "in another order": [{"bits": 4, "group_size": 16, "act_order": True}, {"format": "nvfp4", "act_order": True}],
    "NVFP4": [{"format": "nvfp4"}, {"bits": 4, "group_size": 16}],
    "MX": [{"format": "mxfp4"}, {"format": "mxfp8"}, {"bits": 2, "group_size": 32}],
    "blocks": [{"format": "fp8_block"}],
}


def inputs(dtype: torch.dtype, act_order: bool) -> list[Layers]:
    """Two inputs of 96 columns with two layers each, some weights of which are zero."""
    found = []
    for seed in range(2):
        weight, moment = layer(rows=10, columns=96, seed=seed)
        weight[weight.abs() < 0.1] = 0
        weight[4, :32] = 0
        found.append(Layers.of(["a", "b"], [weight[:3].to(dtype), weight[3:].to(dtype)], moment, 0.01, act_order))
    return found


def agreement(variants: list[dict[str, Any]], dtype: torch.dtype) -> float:
    """The share of all stored numbers that are the same in both ways."""
    settings = [gptq.Settings.model_validate(each) for each in variants]
    batch = inputs(dtype, settings[0].act_order)

    def stored(in_strips: bool) -> list[torch.Tensor]:
        strip.is_available = lambda where: in_strips
        swept = gptq.quantize_variants(batch, settings, dtype)
        return [value for of_inputs in swept for ours in of_inputs for each in ours for value in tensors(each)]

    same = [(one == other).flatten() for one, other in zip(stored(False), stored(True), strict=True)]
    return torch.cat(same).float().mean().item()


def main() -> None:
    """Entry point."""
    strip.COLUMNS = 32
    found = {name: agreement(variants, torch.bfloat16) for name, variants in CASES.items()}
    found["of float16"] = agreement(CASES["NVFP4"], torch.float16)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
