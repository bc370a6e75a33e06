"""Settings that are swept together against each by itself, and the calls that a column costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers import columns
from hemorrhage.compress.solvers.columns import Layers, Limits
from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.number_formats import AnyQuantized, columns_of_scale
from hemorrhage.compress.solvers.rounded_sweep import sweep_formats
from tests.compress.made import layer

EVERY: list[dict[str, Any]] = [
    {"bits": 8, "group_size": 32},
    {"format": "nvfp4"},
    {"bits": 4, "group_size": 32},
    {"bits": 3, "group_size": 32, "symmetric": True},
    {"format": "mxfp4"},
    {"bits": 2, "group_size": 32},
    {"format": "mxfp8"},
    {"bits": 4, "group_size": 16, "keep_zeros": True},
    {"bits": 4, "group_size": "channel"},
    {"format": "fp8"},
    {"format": "fp8_tensor"},
    {"format": "fp8_block"},
]
"""Settings whose groups are of four widths, in no order."""


def inputs(rows: int = 40, width: int = 160, act_order: bool = False) -> list[Layers]:
    """Two inputs with two layers each, some of whose weights are zero."""
    found = []
    for seed in range(2):
        weight, moment = layer(rows=rows, columns=width, seed=seed)
        weight[weight.abs() < 0.1] = 0
        parts = [weight[: rows // 3].bfloat16(), weight[rows // 3 :].bfloat16()]
        found.append(Layers.of([f"a{seed}", f"b{seed}"], parts, moment, 0.01, act_order))
    return found


def tensors(quantized: AnyQuantized) -> list[Tensor]:
    """All that is stored of a layer."""
    if not isinstance(quantized, Quantized):
        return [each.view(torch.uint8) for each in quantized.tensors().values()]
    return [each for each in (quantized.codes, quantized.scale, quantized.zero) if each is not None]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 100, 10_000])
def test_variants_that_are_swept_together_are_bit_for_bit_those_of_each_alone(
    act_order: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [gptq.Settings.model_validate({**each, "act_order": act_order}) for each in EVERY]
    batch = inputs(act_order=act_order)
    monkeypatch.setattr(columns, "ROWS", rows_at_once)
    together = gptq.quantize_variants(batch, variants, torch.bfloat16)
    for settings, of_inputs in zip(variants, together, strict=True):
        width = columns_of_scale("a", 160, settings)
        (alone,) = sweep_formats(batch, width, [settings], torch.bfloat16, act_order)
        for ours, expected in zip(of_inputs, alone, strict=True):
            for one, other in zip(ours, expected, strict=True):
                assert all(map(torch.equal, tensors(one), tensors(other))), settings


def test_only_what_fits_the_device_is_swept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(batch: list[Layers], width: int, variants: list[gptq.Settings], *_: object) -> Any:
        sizes.append(len(variants))
        return [[[]] for _ in variants]

    monkeypatch.setattr(gptq, "sweep_formats", noted)
    variants = [gptq.Settings(bits=bits, group_size=16) for bits in (8, 6, 5, 4, 3, 2)]
    # Two inputs of 40 rows each.
    for rows, expected in ((480, [6]), (479, [5, 1]), (240, [3, 3]), (159, [1] * 6)):
        monkeypatch.setattr(Limits, "of_device", lambda rows=rows: Limits(rows, 2**30, 2**40, 0))
        gptq.quantize_variants(inputs(rows=40), variants, torch.bfloat16)
        assert sizes == expected
        sizes.clear()


class Calls(TorchDispatchMode):
    """Counts calls that compute: each is a launch on a GPU."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        # A view of what there is computes nothing.
        self.number += not getattr(func, "is_view", False)
        return result


def calls(width: int, variants: list[gptq.Settings]) -> int:
    """The calls of a sweep of so many columns."""
    batch, counter = inputs(width=width), Calls()  # type: ignore[no-untyped-call]
    with counter:
        gptq.quantize_variants(batch, variants, torch.bfloat16)
    return counter.number


def test_a_column_of_many_variants_costs_the_calls_of_one() -> None:
    of_bits = [gptq.Settings(bits=bits, group_size="channel") for bits in (8, 4, 3, 2)]
    of_column = [(calls(192, some) - calls(96, some)) / 96 for some in (of_bits[:1], of_bits)]
    # Divide, round, clamp, the error, what it leaves to the strip; and products between strips.
    assert of_column[0] <= 5.25
    assert of_column[1] == of_column[0]


def test_variants_share_the_factor_of_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    factored: list[int] = []
    factor = columns.factor

    def noted(H: Tensor, damp: float) -> tuple[Tensor, Tensor]:
        factored.append(len(H))
        return factor(H, damp)

    monkeypatch.setattr(columns, "factor", noted)
    gptq.quantize_variants(inputs(), [gptq.Settings.model_validate(each) for each in EVERY], torch.bfloat16)
    assert factored == [160, 160]
