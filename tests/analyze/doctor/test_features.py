"""Features of a variant against drawn normal weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from hemorrhage.analyze.doctor import features
from hemorrhage.analyze.doctor.features import Alteration, Base

BASE = Base("m", 2e6, 1.5e6, 4, 64, 1e9, 512)


def alteration(**changes: Any) -> Alteration:
    plain = Alteration("rtn-4", "rtn", "weight_quantization", "bits", 4.0, {"bits": 4, "group_size": 64}, None)
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 64, False), (3, 32, True), (8, 16, False)])
def test_noise_of_rounding_is_that_of_normal_weights(bits: int, group: int, symmetric: bool) -> None:
    drawn = torch.randn(4000, group, generator=torch.Generator().manual_seed(0))
    if symmetric:
        step = 2 * drawn.abs().amax(1, keepdim=True) / (2**bits - 1)
    else:
        step = (drawn.amax(1, keepdim=True) - drawn.amin(1, keepdim=True)) / (2**bits - 1)
    measured = ((drawn / step).round() * step - drawn).square().mean().item()
    assert features.rounding(bits, group, symmetric) == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("sparsity", [0.3, 0.7, "2:4", "4:8"])
def test_noise_of_pruning_is_that_of_normal_weights(sparsity: float | str) -> None:
    drawn = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)).double()
    if isinstance(sparsity, str):
        kept, of_each = map(int, sparsity.split(":"))
        lost = drawn.unflatten(1, (-1, of_each)).square().sort(-1).values[..., : of_each - kept].sum() / drawn.numel()
    else:
        energies = drawn.flatten().square().sort().values
        lost = energies[: int(sparsity * len(energies))].sum() / len(energies)
    assert features.pruned(sparsity) == pytest.approx(lost.item(), rel=0.03)


def test_equivalent_bits_make_the_same_noise() -> None:
    for bits in (2.0, 3.0, 5.5):
        noise = features.rounding(bits, features.OF_LAW, symmetric=False)
        assert features.equivalent_bits(noise) == pytest.approx(bits, abs=1e-9)


def test_what_is_measured_goes_before_what_is_planned() -> None:
    planned = features.columns_of(alteration(), BASE, 2.0, "prose")
    layers = {f"l{place}": {"weight_sqnr": 20.0, "output_sqnr": 10.0, "input_outliers": 4.0} for place in range(3)}
    made = features.columns_of(alteration(layers=layers, calibrated_on=["prose"]), BASE, 2.0, "code")
    assert math.isnan(planned["noise_weights"])
    assert planned["noise_best"] == planned["noise"]
    assert made["noise_weights"] == pytest.approx(math.log(0.01))
    assert made["noise_best"] == made["noise_outputs"] == pytest.approx(math.log(0.1))
    assert (made["matched"], made["calibrated"]) == (0.0, 1.0)
    assert made["outliers"] == pytest.approx(math.log(4))
    assert made["gained"] == pytest.approx(math.log(512) - 2)
