"""The calibration set and its statistics against direct computations on the whole batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.artifact import read_manifest
from hemorrhage.calibrate import triangle
from hemorrhage.calibrate.statistics import collect, shared_inputs
from hemorrhage.calibrate.windows import draw
from hemorrhage.compress.blocks import blocks, linears_of
from hemorrhage.compress.statistics import Statistics
from hemorrhage.models.checkpoint import load
from tests.calibration import SPEC, calibrated


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
            torch.testing.assert_close(
                statistics.norms(first), x.square().mean(0).sqrt().float(), rtol=1e-4, atol=1e-6
            )
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


def test_batches_do_not_matter(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(500, (6, 16), generator=torch.Generator().manual_seed(1))
    whole = collect(model, tokens, tmp_path / "whole.safetensors")
    monkeypatch.setattr("hemorrhage.calibrate.statistics.BATCH_TOKENS", 32)
    parts = collect(model, tokens, tmp_path / "parts.safetensors")
    assert parts == pytest.approx(whole, abs=1e-6)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6 * a[name].abs().max().item())


def test_the_model_is_left_as_it_was(model: PreTrainedModel, tmp_path: Path) -> None:
    tokens = torch.randint(500, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(tokens).logits
        collect(model, tokens, tmp_path / "moments.safetensors")
        assert torch.equal(model(tokens).logits, before)


def test_manifest_says_what_was_done(calibration: Path) -> None:
    manifest = read_manifest(calibration)
    assert manifest["corpus"] == "made"
    assert manifest["sha256"] == "ab"
    assert manifest["spec"] == SPEC
    assert manifest["tokens"] == SPEC["samples"] * SPEC["length"]
    assert "not propagated" in manifest["note"]


def test_windows_are_pieces_of_the_text_and_repeat_with_the_seed() -> None:
    text = torch.arange(1000, dtype=torch.int32)
    windows = draw(text, 20, 16, seed=1, bos=None)
    assert windows.shape == (20, 16)
    assert windows.dtype == torch.int32
    assert (windows.diff(dim=1) == 1).all()
    assert torch.equal(windows, draw(text, 20, 16, seed=1, bos=None))
    assert not torch.equal(windows, draw(text, 20, 16, seed=2, bos=None))


def test_bos_is_one_of_the_tokens_of_a_window() -> None:
    windows = draw(torch.arange(100, 200, dtype=torch.int32), 5, 16, seed=1, bos=7)
    assert windows.shape == (5, 16)
    assert (windows[:, 0] == 7).all()
    assert (windows[:, 1:] >= 100).all()


def test_a_text_of_exactly_one_window_is_enough_and_a_shorter_one_is_refused() -> None:
    text = torch.arange(16, dtype=torch.int32)
    assert torch.equal(draw(text, 1, 16, seed=0, bos=None)[0], text)
    with pytest.raises(ValueError, match=r"calibrate\.length: 17 tokens, but .* has only 16"):
        draw(text, 1, 17, seed=0, bos=None)


def test_triangle_there_and_back() -> None:
    matrix = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    vector = torch.cat(list(triangle.rows(matrix)))
    assert len(vector) == triangle.length(7)
    assert torch.equal(triangle.square(vector), matrix)
    assert torch.equal(triangle.diagonal(vector), matrix.diagonal())
    with pytest.raises(ValueError, match="no upper triangle"):
        triangle.square(vector[:-1])
