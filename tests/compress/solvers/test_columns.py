"""Tests of columns."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.progress import Progress
from hemorrhage.compress.solvers.columns import ROWS, VALUES, Layers, Limits, batches, factor, in_batches
from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.rounded_sweep import sweep_formats
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated
from tests.compress.made import layer

OF_PROCESSOR = Limits(ROWS, VALUES, float("inf"), 0)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_of_inputs_that_are_swept_together_is_that_of_each_alone(act_order: bool) -> None:
    settings = gptq.Settings(bits=3, group_size=16, act_order=act_order, keep_zeros=True)
    problems = [layer(seed=seed) for seed in range(3)]
    batch = [
        Layers.of(["a", "b"], [weight[:5].bfloat16(), weight[5:].bfloat16()], moment, settings.damp, act_order)
        for weight, moment in problems
    ]
    (swept,) = batches(batch, False, OF_PROCESSOR)
    (together,) = sweep_formats(swept, 16, [settings], torch.bfloat16, act_order)
    for (weight, moment), parts in zip(problems, together, strict=True):
        (alone,) = gptq.quantize([weight.bfloat16()], moment, 16, settings, torch.bfloat16)
        assert all(isinstance(part, Quantized) for part in parts)
        assert torch.equal(torch.cat([part.codes for part in parts if isinstance(part, Quantized)]), alone.codes)
        assert torch.equal(torch.cat([part.scale for part in parts]), alone.scale)


def test_layers_wait_for_others_of_their_shape_while_they_are_few() -> None:
    def layers(name: str, rows: int) -> Layers:
        return Layers.of([name], [torch.zeros(rows, 4)], torch.eye(4), 0.01)

    arriving = [layers(f"{kind}{i}", rows) for i in range(3) for kind, rows in (("a", 5000), ("b", 4), ("c", 9000))]
    found = [[each.names[0] for each in batch] for batch in batches(arriving, False, OF_PROCESSOR)]
    assert found == [["c0"], ["a0", "a1"], ["c1"], ["c2"], ["b0", "b1", "b2"], ["a2"]]
    assert [len(batch) for batch in batches(arriving, True, OF_PROCESSOR)] == [1] * 9


def empty(name: str, columns: int, rows: int) -> Layers:
    """Layers of a size that nobody computes with."""
    weight, factor = torch.empty(rows, columns, device="meta"), torch.empty(columns, columns, device="meta")
    vector = torch.empty(columns, device="meta")
    return Layers([name], [weight], factor, vector, vector == 0, vector.long())


def wide_block(number: int) -> list[Layers]:
    """The inputs of a block of 7B width."""
    shapes = {"qkv": (4096, 12288), "o": (4096, 4096), "up": (4096, 22016), "down": (11008, 4096)}
    return [empty(f"{name}{number}", *shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(("gigabytes", "together"), [(140, 29), (80, 16), (24, 5), (6, 1)])
def test_a_gpu_sweeps_inputs_of_7b_width_together_as_far_as_its_memory_goes(gigabytes: int, together: int) -> None:
    arriving = [layers for number in range(32) for layers in wide_block(number)]
    found = list(batches(arriving, False, Limits.of_memory(gigabytes * 10**9)))
    of_up = [len(batch) for batch in found if batch[0].names[0].startswith("up")]
    assert of_up[0] == together
    assert sum(map(len, found)) == len(arriving)
    assert all(len({each.B.shape for each in batch}) == 1 for batch in found)
    on_a_processor = batches(arriving, False, OF_PROCESSOR)
    assert {len(batch) for batch in on_a_processor} == {1}


class Noted(Progress):
    """Notes the blocks that are finished, each with the layers that were swept before."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.swept: list[list[str]] = []
        self.finished: list[tuple[int, set[str]]] = []

    def finish(self, model: PreTrainedModel, index: int) -> None:
        self.finished.append((index, {name for batch in self.swept for name in batch}))


def test_blocks_that_a_gpu_sweeps_together_are_finished_together(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Statistics(calibrated(tiny, tmp_path))
    monkeypatch.setattr(Limits, "of_device", lambda: replace(Limits.of_memory(10**9), blocks=2))
    model, progress = load(tiny, dtype="stored"), Noted(tmp_path / "progress")
    for batch in in_batches(model, Context(calibration, progress=progress), "gptq", 0.01):
        progress.swept.append([layers.names[0] for layers in batch])
    number = len(blocks(model))
    assert [index for index, _ in progress.finished] == list(range(number))
    assert {len(batch) for batch in progress.swept} == ({1, 2} if number % 2 else {2})
    for index, swept in progress.finished:
        of_blocks = {name for name in calibration.shared() if int(name.split(".")[2]) <= (index | 1)}
        assert swept == of_blocks


@pytest.mark.parametrize("method", ["gptq", "sparsegpt"])
def test_what_a_gpu_sweeps_together_is_what_a_processor_does(
    method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Statistics(calibrated(tiny, tmp_path))
    given = {"gptq": {"bits": 3, "group_size": 4}, "sparsegpt": {"sparsity": 0.5}}[method]
    settings = method_of(method).settings.model_validate(given)
    found = []
    for limits in (OF_PROCESSOR, replace(Limits.of_memory(10**9), blocks=2)):
        monkeypatch.setattr(Limits, "of_device", lambda limits=limits: limits)
        model = load(tiny, dtype="stored")
        method_of(method).alter(model, settings, Context(calibration))
        found.append(dense_weights(model))
    for name, weight in found[0].items():
        assert torch.equal(found[1][name], weight), name


def dense_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of all linear layers, packed or not."""
    dense = {name: form.dense() for name, form in formatted_layers(model).items()}
    return dense or {name: linear.weight.detach() for name, linear in linears_of(model).items()}


def test_factors_that_wait_take_no_more_of_a_gpu_than_a_sweep() -> None:
    limits = Limits.of_memory(24 * 10**9)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0.0

    def arriving() -> Iterator[Layers]:
        for number in range(32):
            for layers in wide_block(number):
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
