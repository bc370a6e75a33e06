"""GBLM and Wanda++ against their definitions, and against what they are to beat."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics, Streamed
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import gblm, magnitude, wanda, wanda_plus
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from tests.compress.methods.unstructured_pruning.conftest import LENGTH, SAMPLES
from tests.layers import block_of

METHODS = {"gblm": gblm, "wanda_plus": wanda_plus}


def inputs_of(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """Every linear layer's input [tokens, columns]."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_hook(lambda _, x, y, name=name: inputs.update({name: x[0].flatten(0, -2)}))
        for name, linear in linears_of(model).items()
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return inputs


def lowest(scores: list[float], sparsity: float | str) -> list[int]:
    """The places of one row that go."""
    if isinstance(sparsity, str):
        kept, among = map(int, sparsity.split(":"))
        drop = []
        for start in range(0, len(scores), among):
            drop += sorted(range(start, start + among), key=lambda j: scores[j])[: among - kept]
        return drop
    return sorted(range(len(scores)), key=lambda j: scores[j])[: round(sparsity * len(scores))]


def literal_gblm(model: PreTrainedModel, texts: Tensor, name: str, alpha: float) -> Tensor:
    """The paper's score of one layer, float64, from the windows themselves."""
    weight = linears_of(model)[name].weight.requires_grad_()
    total = torch.zeros_like(weight, dtype=torch.float64)
    for window in texts:
        loss = model(input_ids=window[None], labels=window[None]).loss
        total += torch.autograd.grad(loss, weight)[0].double().square()
    norm: Tensor = inputs_of(model, texts)[name].double().norm(dim=0)
    return weight.double().abs() * (norm / math.sqrt(len(texts)) + alpha * total.sqrt())


def literal_wanda_plus(model: PreTrainedModel, texts: Tensor, name: str, alpha: float) -> Tensor:
    """The paper's score of one layer, float64, from the windows themselves."""
    weight = linears_of(model)[name].weight.requires_grad_()
    total = torch.zeros_like(weight, dtype=torch.float64)
    for window in texts:
        states = model(window[None], output_hidden_states=True).hidden_states
        # The last of these states is behind the final norm, so this is no test of the last block.
        loss = states[int(name.split(".")[2]) + 1].norm()
        total += torch.autograd.grad(loss, weight)[0].double().square()
    norm: Tensor = inputs_of(model, texts)[name].double().norm(dim=0)
    return weight.double().abs() * (alpha * (total / len(texts)).sqrt() + norm)


LITERAL = {"gblm": literal_gblm, "wanda_plus": literal_wanda_plus}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj", "model.layers.3.mlp.down_proj"])
def test_masks_are_those_of_the_papers_scores(
    tiny: Path, texts: Tensor, statistics: Statistics, method: str, name: str
) -> None:
    scores = LITERAL[method](load(tiny), texts[:SAMPLES], name, 100).detach()
    first = next(first for first, names in statistics.shared().items() if name in names)
    norms = statistics.norms(first)
    if method == "gblm":
        ours = gblm.importance(norms, statistics.gradient_rms(name), SAMPLES, LENGTH, 100)
    else:
        ours = wanda_plus.importance(norms, statistics.local_gradient(name), SAMPLES * LENGTH, 100)
    ours = ours * linears_of(load(tiny))[name].weight.detach().abs()
    torch.testing.assert_close(ours.double(), scores, rtol=2**-8, atol=0)

    for sparsity in (0.5, "2:4"):
        model = load(tiny)
        METHODS[method].alter(model, METHODS[method].Settings(sparsity=sparsity), Context(statistics))
        pruned = linears_of(model)[name].weight == 0
        expected = torch.zeros_like(pruned)
        for i, row in enumerate(scores.tolist()):
            expected[i, lowest(row, sparsity)] = True
        # Gradients are stored in bfloat16, so near ties go either way.
        assert (pruned != expected).double().mean() < 0.005


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.6, 0.8, "2:4", "1:2"])
def test_zeros_are_as_many_as_their_name_says(
    tiny: Path, statistics: Statistics, method: str, sparsity: float | str
) -> None:
    model, base = load(tiny), linears_of(load(tiny))
    METHODS[method].alter(model, METHODS[method].Settings(sparsity=sparsity), Context(statistics))
    for name, linear in linears_of(model).items():
        weight = linear.weight
        if isinstance(sparsity, str):
            kept, among = map(int, sparsity.split(":"))
            assert ((weight.view(-1, among) == 0).sum(1) == among - kept).all()
        else:
            assert ((weight == 0).sum(1) == round(sparsity * weight.shape[1])).all()
        assert torch.equal(weight[weight != 0], base[name].weight[weight != 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, "2:4"])
def test_without_the_gradient_they_are_wanda(
    tiny: Path, statistics: Statistics, method: str, sparsity: float | str
) -> None:
    ours, theirs = load(tiny), load(tiny)
    METHODS[method].alter(ours, METHODS[method].Settings(sparsity=sparsity, alpha=0.0), Context(statistics))
    wanda.alter(theirs, wanda.Settings(sparsity=sparsity), Context(statistics))
    for name, linear in linears_of(ours).items():
        assert torch.equal(linear.weight, linears_of(theirs)[name].weight)


@pytest.fixture(scope="module")
def damage(tiny: Path, texts: Tensor, statistics: Statistics) -> dict[tuple[str, float | str], float]:
    """Mean KL(base ‖ pruned) in nats a token on texts that were not calibrated on."""
    held = texts[SAMPLES:]
    with torch.no_grad():
        base = load(tiny)(held).logits.log_softmax(-1)
    found = {}
    for method in (magnitude, wanda, gblm, wanda_plus):
        for sparsity in (0.5, "2:4"):
            model = load(tiny)
            method.alter(model, method.Settings(sparsity=sparsity), Context(statistics))
            with torch.no_grad():
                log = model(held).logits.log_softmax(-1)
            kl = (base.exp() * (base - log)).sum(-1).mean().item()
            found[method.__name__.rpartition(".")[2], sparsity] = kl
    return found


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_they_do_less_damage_than_magnitude(
    damage: dict[tuple[str, float | str], float], sparsity: float | str
) -> None:
    for method in METHODS:
        assert damage[method, sparsity] < damage["magnitude", sparsity]


class Shuffled(Statistics):
    """The same gradients, each at another weight of its layer."""

    def gradient_rms(self, name: str) -> Tensor:
        return self._elsewhere(super().gradient_rms(name))

    def local_gradient(self, name: str) -> Tensor:
        return self._elsewhere(super().local_gradient(name))

    @staticmethod
    def _elsewhere(values: Tensor) -> Tensor:
        order = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0))
        return values.flatten()[order].view_as(values)


@pytest.mark.parametrize("method", METHODS)
def test_it_matters_where_the_gradients_are(tiny: Path, calibration: Path, parts: dict[str, Path], method: str) -> None:
    masks = []
    for source in (Statistics, Shuffled):
        model = load(tiny)
        METHODS[method].alter(model, METHODS[method].Settings(sparsity=0.5), Context(source(calibration, parts)))
        masks.append(torch.cat([(linear.weight == 0).flatten() for linear in linears_of(model).values()]))
    assert (masks[0] != masks[1]).double().mean() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_sequential_norms_are_those_behind_the_pruned_blocks(
    tiny: Path, texts: Tensor, calibration: Path, parts: dict[str, Path], method: str
) -> None:
    settings = METHODS[method].Settings(sparsity=0.5, sequential=True)
    model = load(tiny)
    METHODS[method].alter(model, settings, Context(Streamed(calibration, parts, model, propagated=True)))
    # The same with everything from scratch: the norms of block 1 with block 0 pruned.
    name = "model.layers.1.self_attn.q_proj"
    half = load(tiny)
    weight = linears_of(half)[name].weight.detach()
    for own, pruned in zip(block_of(half, 0).parameters(), block_of(model, 0).parameters(), strict=True):
        own.data.copy_(pruned)
    norms = inputs_of(half, texts[:SAMPLES])[name].square().mean(0).sqrt()
    statistics = Statistics(calibration, parts)
    if method == "gblm":
        gain = gblm.importance(norms, statistics.gradient_rms(name), SAMPLES, LENGTH, 100)
    else:
        gain = wanda_plus.importance(norms, statistics.local_gradient(name), SAMPLES * LENGTH, 100)
    expected = wanda.mask(weight, gain, settings)
    assert ((linears_of(model)[name].weight == 0) != expected).double().mean() < 0.002


@pytest.mark.parametrize(
    ("method", "part", "extra"),
    [
        ("gblm", "loss", {}),
        ("wanda_plus", "local", {"optimize": 1}),
    ],
)
def test_a_whole_job(
    tiny: Path,
    calibration: Path,
    parts: dict[str, Path],
    tmp_path: Path,
    method: str,
    part: str,
    extra: dict[str, Any],
) -> None:
    spec = {
        "sweep": "s",
        "method": method,
        "seed": 0,
        "settings": {"sparsity": 0.5, **extra},
    }
    compress(tmp_path / "out", "v", tiny, None, calibration, [parts[part]], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest
    assert manifest["sparsity"] == pytest.approx(0.5)


def test_settings_for_people_and_plan(tiny: Path) -> None:
    plain, other = gblm.Settings(sparsity=0.5), gblm.Settings(sparsity="2:4", alpha=1.0, sequential=True)
    assert (plain.label, plain.curve, plain.severity, plain.alpha) == ("50 %", "", 0.5, 100)
    assert other.curve == "n:4, sequential, alpha 1"
    assert plain.statistics == ("activations", "gradients", "tokens")
    rounds = wanda_plus.Settings(sparsity=0.5, optimize=5)
    assert rounds.statistics == ("activations", "local_gradients", "tokens")
    assert (rounds.label, rounds.curve) == ("50 %, 5 rounds", "5 rounds")
    assert rounds.check(json.loads((tiny / "config.json").read_text())) is None
    for method in METHODS.values():
        for wrong in ({"alpha": -1.0}, {"optimize": -1}, {"beta": 1}, {"sparsity": "4:2"}):
            with pytest.raises(ValueError, match=r"Input|permitted|a share"):
                method.Settings.model_validate({"sparsity": 0.5, **wrong})
