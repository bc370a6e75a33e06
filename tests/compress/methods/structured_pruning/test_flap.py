"""FLAP against its authors' ranking in NumPy, and what its bias is for: mean outputs that stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.structured_pruning import flap
from hemorrhage.compress.solvers.coupled import Coupled
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.divergence import divergence
from tests.layers import layer_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("flap"))


def inputs_of(model: Any, name: str, tokens: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer_of(model, name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(tokens)
    hook.remove()
    return seen[0].flatten(0, -2)


@pytest.mark.parametrize("metric", ["wifv", "ifv", "wifn"])
def test_columns_are_ranked_by_what_the_layer_reads(tiny: Path, calibration: Path, metric: str) -> None:
    model, statistics = load(tiny), Statistics(calibration)
    name = "model.layers.1.mlp.down_proj"
    X = inputs_of(model, name, statistics.tokens()).double().numpy()
    W = layer_of(model, name).weight.detach()
    w = W.double().numpy()
    expected = {
        "wifv": X.var(0) * (w**2).sum(0),
        "ifv": X.var(0),
        "wifn": np.abs(w).mean(0) * np.sqrt((X**2).mean(0)),
    }[metric]
    ours = flap.column_scores(W, statistics, name, metric)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3, atol=1e-9)


def test_heads_and_channels_are_ranked_together_by_their_weights() -> None:
    # The authors' AL-AM: two blocks of 4 heads of 8 columns, 12 channels; a head has as many weights as 10 channels.
    generator = torch.Generator().manual_seed(0)
    heads = torch.rand(2, 32, generator=generator, dtype=torch.float64)
    channels = torch.rand(2, 12, generator=generator, dtype=torch.float64)

    def standardize(scores: Tensor) -> Tensor:
        return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)

    of_heads = standardize(heads**2).view(2, 4, 8).mean(2)
    of_channels = standardize(channels)
    metric = torch.cat([of_heads.flatten(), of_channels.flatten()])
    ordered, indices = metric.sort(descending=True)
    weights = torch.ones(len(metric))
    weights[indices < 8] = 10.0
    total = weights.sum()
    place = (weights.cumsum(0) - 0.7 * total).abs().argmin()
    # Those down to the place stay; the program leaves out the last of them.
    expected = metric >= ordered[place]
    columns = Coupled({}, "o", torch.arange(32).view(4, 8)), Coupled({}, "d", torch.arange(12)[:, None])
    scores = [
        flap.group_scores(each, coupled, coupled.reader == "o")
        for block in range(2)
        for each, coupled in zip((heads[block], channels[block]), columns, strict=True)
    ]
    kept = flap.choose(scores, [10, 1, 10, 1], 0.3 * total.item())
    assert torch.equal(torch.cat([kept[0], kept[2], kept[1], kept[3]]), expected)


def test_the_best_of_each_stays() -> None:
    scores = [torch.tensor([-9.0, -8.0]), torch.tensor([1.0, 2.0, 3.0])]
    kept = flap.choose(scores, [1, 1], 100.0)
    assert [each.tolist() for each in kept] == [[False, True], [False, False, True]]


def test_a_bias_stands_for_inputs_that_do_not_change() -> None:
    generator = torch.Generator().manual_seed(0)
    for bias in (False, True):
        linear = torch.nn.Linear(7, 5, bias=bias)
        x = torch.randn(20, 7, generator=generator)
        gone = torch.tensor([1, 4])
        x[:, gone] = torch.tensor([0.7, -2.0])
        y = linear(x)
        with torch.no_grad():
            flap.add_bias(linear, gone, x.mean(0))
            linear.weight[:, gone] = 0
        torch.testing.assert_close(linear(x), y)


def test_mean_outputs_of_the_first_block_stay_and_the_model_is_less_damaged(tiny: Path, calibration: Path) -> None:
    statistics = Statistics(calibration)
    tokens = statistics.tokens()
    base = load(tiny)
    name = "model.layers.0.self_attn.o_proj"
    damage, means = {}, {}

    def mean_output(model: Any) -> Tensor:
        outputs: Tensor = layer_of(model, name)(inputs_of(model, name, tokens))
        return outputs.mean(0).detach()

    for compensate in (True, False):
        model = load(tiny)
        flap.alter(model, flap.Settings(removed=0.4, compensate=compensate), Context(statistics))
        damage[compensate], means[compensate] = divergence(base, model, tokens), mean_output(model)
    torch.testing.assert_close(means[True], mean_output(base), rtol=1e-3, atol=1e-5)
    assert damage[True] <= damage[False]


@pytest.mark.parametrize("compensate", [True, False])
def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path, compensate: bool) -> None:
    calibration = calibrated(odd, tmp_path)
    out = tmp_path / "out"
    compress(out, "v", odd, None, calibration, [], spec("flap", removed=0.3, compensate=compensate))
    manifest = json.loads((out / "manifest.json").read_text())
    assert "failure" not in manifest, manifest
    assert manifest["severity"] == pytest.approx(0.3, abs=0.01)
    model = load(out, "stored", base=odd)
    verify(load(out, base=odd), out)
    biases = {name for name, linear in linears_of(model).items() if linear.bias is not None}
    # One group of heads stays as it is; channels of both blocks are narrower.
    assert biases == ({f"model.layers.{index}.mlp.down_proj" for index in range(2)} if compensate else set())
    streamed = load(out, streamed=True, base=odd)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(streamed(tokens).logits, load(out, base=odd)(tokens).logits)
