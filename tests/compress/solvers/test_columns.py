"""Tests of columns."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch

from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers.columns import ROWS, VALUES, Layers, Limits, batches, factor
from hemorrhage.compress.solvers.grid import Quantized
from tests.compress.made import layer


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_of_inputs_that_are_swept_together_is_that_of_each_alone(act_order: bool) -> None:
    settings = gptq.Settings(bits=3, group_size=16, act_order=act_order, keep_zeros=True)
    problems = [layer(seed=seed) for seed in range(3)]
    batch = [
        Layers.of(["a", "b"], [weight[:5].bfloat16(), weight[5:].bfloat16()], moment, settings.damp, act_order)
        for weight, moment in problems
    ]
    (swept,) = batches(batch, alone=False)
    together = gptq._quantize(swept, 16, settings, torch.bfloat16)
    for (weight, moment), parts in zip(problems, together, strict=True):
        (alone,) = gptq.quantize([weight.bfloat16()], moment, 16, settings, torch.bfloat16)
        assert all(isinstance(part, Quantized) for part in parts)
        assert torch.equal(torch.cat([part.codes for part in parts if isinstance(part, Quantized)]), alone.codes)
        assert torch.equal(torch.cat([part.scale for part in parts]), alone.scale)


def test_layers_wait_for_others_of_their_shape_while_they_are_few() -> None:
    def layers(name: str, rows: int) -> Layers:
        return Layers.of([name], [torch.zeros(rows, 4)], torch.eye(4), 0.01)

    arriving = [layers(f"{kind}{i}", rows) for i in range(3) for kind, rows in (("a", 5000), ("b", 4), ("c", 9000))]
    found = [[each.names[0] for each in batch] for batch in batches(arriving, alone=False)]
    assert found == [["c0"], ["a0", "a1"], ["c1"], ["c2"], ["b0", "b1", "b2"], ["a2"]]
    assert [len(batch) for batch in batches(arriving, alone=True)] == [1] * 9


def empty(name: str, columns: int, rows: int) -> Layers:
    """Layers of a size that nobody computes with."""
    weight, factor = torch.empty(rows, columns, device="meta"), torch.empty(columns, columns, device="meta")
    vector = torch.empty(columns, device="meta")
    return Layers([name], [weight], factor, vector, vector == 0, vector.long())


def block(number: int) -> list[Layers]:
    """The inputs of a block of 7B width."""
    shapes = {"qkv": (4096, 12288), "o": (4096, 4096), "up": (4096, 22016), "down": (11008, 4096)}
    return [empty(f"{name}{number}", *shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(("gigabytes", "together"), [(140, 29), (80, 16), (24, 5), (6, 1)])
def test_a_gpu_sweeps_inputs_of_7b_width_together_as_far_as_its_memory_goes(gigabytes: int, together: int) -> None:
    arriving = [layers for number in range(32) for layers in block(number)]
    found = list(batches(arriving, False, Limits.of_memory(gigabytes * 10**9)))
    of_up = [len(batch) for batch in found if batch[0].names[0].startswith("up")]
    assert of_up[0] == together
    assert sum(map(len, found)) == len(arriving)
    assert all(len({each.B.shape for each in batch}) == 1 for batch in found)
    on_a_processor = batches(arriving, False, Limits(ROWS, VALUES, float("inf")))
    assert {len(batch) for batch in on_a_processor} == {1}


def test_factors_that_wait_take_no_more_of_a_gpu_than_a_sweep() -> None:
    limits = Limits.of_memory(24 * 10**9)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0.0

    def arriving() -> Iterator[Layers]:
        for number in range(32):
            for layers in block(number):
                alive.add(layers.B)
                yield layers

    for batch in batches(arriving(), False, limits):
        del batch
        most = max(most, sum(factor.nbytes for factor in alive))
    assert 0 < most <= limits.bytes


def test_factor_is_that_of_the_damped_moment() -> None:
    _, moment = layer()
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(48)
    reach, diagonal = (part.double() for part in factor(moment, 0.01))
    assert torch.equal(reach, reach.tril())
    assert (reach.diagonal() == 1).all()
    R = (reach * diagonal[:, None]).T
    torch.testing.assert_close(R @ R.T, damped, rtol=1e-4, atol=1e-5)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(1 / diagonal, U.diagonal(), rtol=1e-4, atol=0)
