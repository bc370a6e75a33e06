"""Tests of columns."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers.columns import Layers, batches, factor
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
        assert torch.equal(torch.cat([part.codes for part in parts]), alone.codes)
        assert torch.equal(torch.cat([part.scale for part in parts]), alone.scale)


def test_layers_wait_for_others_of_their_shape_while_they_are_few() -> None:
    def layers(name: str, rows: int) -> Layers:
        return Layers.of([name], [torch.zeros(rows, 4)], torch.eye(4), 0.01)

    arriving = [layers(f"{kind}{i}", rows) for i in range(3) for kind, rows in (("a", 5000), ("b", 4), ("c", 9000))]
    found = [[each.names[0] for each in batch] for batch in batches(arriving, alone=False)]
    assert found == [["c0"], ["a0", "a1"], ["c1"], ["c2"], ["b0", "b1", "b2"], ["a2"]]
    assert [len(batch) for batch in batches(arriving, alone=True)] == [1] * 9


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
