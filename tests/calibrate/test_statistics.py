"""The statistics of a calibration set against direct computations on the whole batch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import Walk, collect, shared_inputs
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def model(tiny: Path) -> PreTrainedModel:
    return load(tiny)


def observed(model: PreTrainedModel, tokens: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Inputs of all linear layers, and the states before the first block and after each block."""
    inputs: dict[str, Tensor] = {}
    states: list[Tensor] = []
    hooks = [
        linear.register_forward_hook(lambda _, x, y, name=name: inputs.update({name: x[0].flatten(0, -2)}))
        for name, linear in linears_of(model).items()
    ]
    hooks.append(blocks(model)[0].register_forward_pre_hook(lambda _, x: states.append(x[0])))
    hooks += [block.register_forward_hook(lambda _, x, y: states.append(y)) for block in blocks(model)]
    with torch.no_grad():
        model(tokens.long())
    for hook in hooks:
        hook.remove()
    return inputs, states


def test_second_moments_are_those_of_the_whole_model(calibration: Path, model: PreTrainedModel) -> None:
    tokens = load_file(calibration / "tokens.safetensors")["tokens"]
    inputs, _ = observed(model, tokens)
    statistics = Statistics(calibration)
    seen = set()
    for first, names in statistics.shared().items():
        moment = statistics.second_moment(first)
        for name in names:
            x = inputs[name].double()
            expected = (x.T @ x / len(x)).float()
            torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
            torch.testing.assert_close(statistics.norms(first), x.square().mean(0).sqrt().float(), rtol=1e-4, atol=1e-6)
            seen.add(name)
    assert seen == set(linears_of(model))


def test_layers_that_share_an_input_are_found(model: PreTrainedModel) -> None:
    shared = shared_inputs(model, torch.arange(8)[None])
    assert list(shared.values())[:4] == [
        [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"],
        ["model.layers.0.self_attn.o_proj"],
        [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")],
        ["model.layers.0.mlp.down_proj"],
    ]
    assert len(shared) == 4 * model.config.num_hidden_layers


def test_block_influence_is_one_minus_the_mean_cosine(calibration: Path, model: PreTrainedModel) -> None:
    _, states = observed(model, load_file(calibration / "tokens.safetensors")["tokens"])
    expected = []
    for before, after in itertools.pairwise(states):
        a, b = before.flatten(0, 1).double(), after.flatten(0, 1).double()
        expected.append(1 - ((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean().item())
    assert Statistics(calibration).block_influence() == pytest.approx(expected, abs=1e-5)


def test_batches_do_not_matter(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(500, (6, 16), generator=torch.Generator().manual_seed(1))
    for name, batch in (("whole", 2048), ("parts", 32)):
        monkeypatch.setattr("hemorrhage.calibrate.statistics.BATCH_TOKENS", batch)
        (tmp_path / name).mkdir()
        collect(model, tokens, tmp_path / name)
    whole, parts = (json.loads((tmp_path / name / "influence.json").read_text()) for name in ("whole", "parts"))
    assert parts["block_influence"] == pytest.approx(whole["block_influence"], abs=1e-6)
    for file in ("hessian.safetensors", "activations.safetensors"):
        a, b = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6 * a[name].abs().max().item())


def test_the_model_is_left_as_it_was(model: PreTrainedModel, tmp_path: Path) -> None:
    tokens = torch.randint(500, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(tokens).logits
        collect(model, tokens, tmp_path)
        assert torch.equal(model(tokens).logits, before)


def test_ranges_and_angles_are_those_of_hidden_states(model: PreTrainedModel, tmp_path: Path) -> None:
    tokens = torch.randint(500, (4, 16), generator=torch.Generator().manual_seed(1))
    collect(model, tokens, tmp_path)
    found = load_file(tmp_path / "activations.safetensors")
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, x, y: seen.extend([x[0], y]))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    hook.remove()
    x, y = (value.flatten(0, 1) for value in seen)
    torch.testing.assert_close(found[f"{name}.mean_abs"], x.abs().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[f"{name}.mean"], x.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[f"{name}.variance"], x.var(0, correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[f"{name}.max_abs"], x.abs().amax(0), rtol=1e-4, atol=1e-6)
    assert found[f"{name}.range"].tolist() == pytest.approx([x.min().item(), x.max().item()], rel=1e-4)
    assert found[f"{name}.output_range"].tolist() == pytest.approx([y.min().item(), y.max().item()], rel=1e-4)
    angles = json.loads((tmp_path / "influence.json").read_text())["angular_distance"]
    cosine = torch.cosine_similarity(states[1][:, -1], states[3][:, -1], dim=-1)
    assert angles[1][3] == pytest.approx((cosine.arccos() / torch.pi).mean().item(), abs=1e-5)
    assert angles[3][1] == angles[1][3]
    assert angles[2][2] == pytest.approx(0, abs=1e-6)


WAITING = ("item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")


class Waits(TorchDispatchMode):
    """Counts how often a number is read from where it was computed, for which a processor waits for a GPU."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket.__name__ in WAITING
        return func(*args, **kwargs or {})


def test_a_block_is_observed_without_waiting_for_the_device(model: PreTrainedModel) -> None:
    tokens = torch.randint(500, (8, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        walk = Walk(model, tokens, shared_inputs(model, tokens[:1, :8]))
        waits = Waits()  # type: ignore[no-untyped-call]
        with waits:
            seen = walk.advance(second_moments=True)
        assert waits.number == 0
        with waits:
            assert 0 < seen.similarity.item() <= tokens.numel()
    assert waits.number == 1
