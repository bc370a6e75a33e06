"""Gradient statistics against autograd, sample by sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.calibrate.gradients import gradients, measure_local
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest

SAMPLES, LENGTH = 3, 12
HALF = 2**-8
"""Relative error of a value rounded to bfloat16 (twice the bound, for the order of the sums)."""


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of a calibration folder that the step reads."""
    folder = tmp_path_factory.mktemp("gradients")
    tokens = torch.randint(3, 500, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(5))
    save_file({"tokens": tokens.int()}, folder / "tokens.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"corpora": {"made": "ab"}}))
    return folder


@pytest.fixture(scope="module")
def parts(tiny: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    for part in ("loss", "local"):
        gradients(folder / part, tiny, calibration, {"part": part})
    return {part: folder / part for part in ("loss", "local")}


@pytest.fixture(scope="module")
def model(tiny: Path) -> PreTrainedModel:
    return load(tiny)


@pytest.fixture(scope="module")
def windows(calibration: Path) -> Tensor:
    return load_file(calibration / "tokens.safetensors")["tokens"].long()


def summed_nll(model: PreTrainedModel, window: Tensor) -> Tensor:
    """Over the predictions of one window [length], written out."""
    logits = model(window[None]).logits[0]
    chosen = [logits[t].log_softmax(-1)[window[t + 1]] for t in range(len(window) - 1)]
    return -torch.stack(chosen).sum()


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, rtol=HALF, atol=1e-4 * expected.abs().max().item())


def test_mean_and_rms_are_those_of_single_windows(
    parts: dict[str, Path], model: PreTrainedModel, windows: Tensor
) -> None:
    linears = linears_of(model)
    weights = [linear.weight.requires_grad_() for linear in linears.values()]
    each = [torch.autograd.grad(summed_nll(model, window) / (LENGTH - 1), weights) for window in windows]
    found = load_file(parts["loss"] / "gradients.safetensors")
    for index, (name, linear) in enumerate(linears.items()):
        stack = torch.stack([sample[index] for sample in each]).double()
        assert stack.shape == (SAMPLES, *linear.weight.shape)
        assert found[f"{name}.mean"].dtype == found[f"{name}.rms"].dtype == torch.bfloat16
        close(found[f"{name}.mean"], stack.mean(0))
        close(found[f"{name}.rms"], stack.square().mean(0).sqrt())


def test_output_gradients_are_those_of_what_is_added_to_the_outputs(
    parts: dict[str, Path], model: PreTrainedModel, windows: Tensor
) -> None:
    linears = linears_of(model)
    squares = {name: torch.zeros(len(linear.weight), dtype=torch.float64) for name, linear in linears.items()}
    last = 0.0
    for window in windows:
        added = {
            name: torch.zeros(1, LENGTH, len(linear.weight), requires_grad=True) for name, linear in linears.items()
        }
        hooks = [
            linear.register_forward_hook(lambda _, x, y, extra=added[name]: y + extra)
            for name, linear in linears.items()
        ]
        found = torch.autograd.grad(summed_nll(model, window), list(added.values()))
        for hook in hooks:
            hook.remove()
        for name, gradient in zip(linears, found, strict=True):
            for t in range(LENGTH):
                squares[name] += gradient[0, t].double().square()
            last += gradient[0, LENGTH - 1].abs().sum().item()
    assert last == 0, "the last token predicts nothing"
    ours = load_file(parts["loss"] / "gradients.safetensors")
    for name in linears:
        assert ours[f"{name}.output"].dtype == torch.float32
        expected = squares[name] / (SAMPLES * LENGTH)
        torch.testing.assert_close(ours[f"{name}.output"].double(), expected, rtol=1e-4, atol=1e-12)


def test_mean_is_the_slope_of_the_loss(tiny: Path, parts: dict[str, Path], windows: Tensor) -> None:
    model = load(tiny, dtype="float64")
    name = "model.layers.2.mlp.down_proj"
    weight = linears_of(model)[name].weight
    mean = load_file(parts["loss"] / "gradients.safetensors")[f"{name}.mean"]
    row, column = divmod(int(mean.abs().argmax()), mean.shape[1])
    losses = []
    with torch.no_grad():
        for shift in (-1e-4, 2e-4):
            weight[row, column] += shift
            losses.append(sum(summed_nll(model, window).item() for window in windows) / SAMPLES / (LENGTH - 1))
    assert mean[row, column].item() == pytest.approx((losses[1] - losses[0]) / 2e-4, rel=0.01)


def test_local_gradients_are_those_of_each_blocks_own_output(
    parts: dict[str, Path], model: PreTrainedModel, windows: Tensor
) -> None:
    found = load_file(parts["local"] / "gradients.safetensors")
    linears = linears_of(model)
    assert set(found) == {f"{name}.local" for name in linears}
    for block in blocks(model):
        inside = {name: linear for name, linear in linears.items() if linear in set(block.modules())}
        weights = [linear.weight.requires_grad_() for linear in inside.values()]
        each = []
        for window in windows:
            seen: list[Tensor] = []
            hook = block.register_forward_hook(lambda _, x, y, seen=seen: seen.append(y))
            model(window[None])
            hook.remove()
            each.append(torch.autograd.grad(seen[0].square().sum().sqrt(), weights))
        for index, name in enumerate(inside):
            stack = torch.stack([sample[index] for sample in each]).double()
            close(found[f"{name}.local"], stack.square().mean(0).sqrt())


def test_local_gradients_of_a_model_in_bfloat16_are_computed_in_float32(
    tiny: Path, windows: Tensor, tmp_path: Path
) -> None:
    found = []
    for dtype in ("bfloat16", "float32"):
        model = load(tiny, dtype="bfloat16").requires_grad_(False)
        if dtype == "float32":
            model = model.float()
        measure_local(model, windows, tmp_path / dtype)
        assert all(weight.dtype == getattr(torch, dtype) for weight in model.parameters())
        assert not any(weight.requires_grad for weight in model.parameters())
        found.append(load_file(tmp_path / dtype))
    for name, value in found[0].items():
        # Rounded twice: a step of bfloat16 apart.
        torch.testing.assert_close(value, found[1][name], rtol=2.1 * HALF, atol=0)


def test_statistics_read_them(tiny: Path, parts: dict[str, Path], calibration: Path, model: PreTrainedModel) -> None:
    statistics = Statistics(calibration, parts)
    for name, linear in linears_of(model).items():
        for matrix in (
            statistics.gradient(name),
            statistics.gradient_rms(name),
            statistics.local_gradient(name),
        ):
            assert matrix.shape == linear.weight.shape
            assert matrix.dtype == torch.float32
        assert statistics.output_gradient(name).shape == (linear.out_features,)
        assert (statistics.gradient(name).abs() <= statistics.gradient_rms(name) * (1 + 2 * HALF)).all()


def test_a_second_run_gives_the_same_bytes(
    tiny: Path, calibration: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    for part, folder in parts.items():
        gradients(tmp_path / part, tiny, calibration, {"part": part})
        first, second = (path / "gradients.safetensors" for path in (folder, tmp_path / part))
        assert first.read_bytes() == second.read_bytes()


def test_manifest_says_what_was_done(parts: dict[str, Path]) -> None:
    manifest = read_manifest(parts["local"])
    assert manifest["corpora"] == {"made": "ab"}
    assert manifest["spec"] == {"part": "local"}
    assert (manifest["samples"], manifest["length"]) == (SAMPLES, LENGTH)


def test_unknown_parts_and_broken_models_are_refused(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part 'both': gradients are of part loss or local"):
        gradients(tmp_path / "out", tiny, calibration, {"part": "both"})
    model = load(tiny).requires_grad_(False)
    linears_of(model)["model.layers.1.mlp.up_proj"].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="its gradients are not finite"):
        measure_local(model, torch.arange(8)[None], tmp_path / "file")
    assert not (tmp_path / "out").exists()
