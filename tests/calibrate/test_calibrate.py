"""The calibration set and its statistics against direct computations on the whole batch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.calibrate import triangle
from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.reader import Statistics, Streamed
from hemorrhage.calibrate.statistics import collect, shared_inputs
from hemorrhage.calibrate.windows import draw
from hemorrhage.models import walk
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
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
    torch.testing.assert_close(found[f"{name}.max_abs"], x.abs().amax(0), rtol=1e-4, atol=1e-6)
    assert found[f"{name}.range"].tolist() == pytest.approx([x.min().item(), x.max().item()], rel=1e-4)
    assert found[f"{name}.output_range"].tolist() == pytest.approx([y.min().item(), y.max().item()], rel=1e-4)
    angles = json.loads((tmp_path / "influence.json").read_text())["angular_distance"]
    cosine = torch.cosine_similarity(states[1][:, -1], states[3][:, -1], dim=-1)
    assert angles[1][3] == pytest.approx((cosine.arccos() / torch.pi).mean().item(), abs=1e-5)
    assert angles[3][1] == angles[1][3]
    assert angles[2][2] == pytest.approx(0, abs=1e-6)


def test_second_moments_beyond_the_limit_are_not_stored_but_collected(
    tiny: Path, calibration: Path, tmp_path: Path
) -> None:
    base = load(tiny)
    found = collect(base, load_file(calibration / "tokens.safetensors")["tokens"], tmp_path, limit=1e5)
    stored_file = load_file(calibration / "hessian.safetensors")
    assert found == {"hessian_bytes": sum(4 * len(value) for value in stored_file.values()), "hessian_stored": False}
    assert not load_file(tmp_path / "hessian.safetensors")
    stored, streamed = Statistics(calibration), Streamed(calibration, None, base, propagated=False)
    assert list(streamed.shared()) == list(stored.shared())
    for first in stored.shared():
        torch.testing.assert_close(streamed.second_moment(first), stored.second_moment(first), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(streamed.norms(first), stored.norms(first), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(streamed.max_abs(first), stored.max_abs(first))


def test_propagated_statistics_are_those_behind_the_altered_blocks(tiny: Path, calibration: Path) -> None:
    model = load(tiny)
    statistics = Streamed(calibration, None, model, propagated=True)
    firsts = list(statistics.shared())
    statistics.second_moment(firsts[0])
    for linear in linears_of(model).values():
        # What lies ahead counts only when it is reached; block 0 counts because block 1 is asked for.
        linear.weight.data *= 0.5
    ahead = next(first for first in firsts if ".layers.1." in first)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(ahead).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        model(statistics.tokens())
    hook.remove()
    expected = seen[0].T @ seen[0] / len(seen[0])
    torch.testing.assert_close(statistics.second_moment(ahead), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="was passed"):
        statistics.second_moment(firsts[0])


def test_a_model_in_bfloat16_is_walked_in_float32(tiny: Path) -> None:
    model = load(tiny).to(torch.bfloat16)
    tokens = torch.randint(500, (2, 16), generator=torch.Generator().manual_seed(1))
    hidden = walk.through(model, tokens)
    logits = walk.logits(model, hidden)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        expected = model.float()(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_manifest_says_what_was_done(calibration: Path) -> None:
    manifest = read_manifest(calibration)
    assert manifest["corpora"] == {"made": "ab"}
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


def test_windows_of_several_texts_take_turns(tiny: Path, tmp_path: Path) -> None:
    texts = []
    for place, (corpus, first) in enumerate({"prose": 10, "code": 300}.items()):
        text = tmp_path / corpus
        text.mkdir()
        save_file({"calibration": torch.arange(first, first + 100, dtype=torch.int32)}, text / "tokens.safetensors")
        (text / "manifest.json").write_text(json.dumps({"corpus": corpus, "sha256": str(place)}))
        texts.append(text)
    calibrate(tmp_path / "out", tiny, texts, {**SPEC, "samples": 5, "hessian_gb": 0})
    tokens = load_file(tmp_path / "out/tokens.safetensors")["tokens"]
    assert (tokens[0::2] < 200).all()
    assert (tokens[1::2] >= 300).all()
    assert torch.equal(tokens[0::2], draw(torch.arange(10, 110, dtype=torch.int32), 3, 32, SPEC["seed"], None))
    assert read_manifest(tmp_path / "out")["corpora"] == {"prose": "0", "code": "1"}


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


@pytest.mark.parametrize("width", [1, 256, 300])
def test_a_triangle_is_mirrored_in_place(width: int) -> None:
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    expected = triangle.mirrored(matrix.triu())
    triangle.mirror(matrix)
    assert torch.equal(matrix, expected)
