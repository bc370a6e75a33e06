"""A state-space model through every step: base, calibrate, quantize, prune, reference and evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import shared_inputs
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.data.tasks import probes
from hemorrhage.data.texts.__main__ import prepare as prepare_text
from hemorrhage.evaluate import __main__ as evaluation
from hemorrhage.evaluate import reference as reference_step
from hemorrhage.evaluate.language import stored_head
from hemorrhage.models.__main__ import prepare as prepare_base
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of, uncalled_linears
from hemorrhage.models.reload import verify
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import SPEC
from tests.divergence import divergence
from tests.layers import block_of, layer_of
from tests.tiny_mamba import build

QUANTIZE: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {"bits": 8, "group_size": 16}),
    ("rtn", {"bits": 3, "group_size": 16}),
    ("gptq", {"bits": 3, "group_size": 16}),
    ("gptq", {"bits": 3, "group_size": 16, "sequential": True}),
    ("rotation", {"bits": 3, "group_size": 16, "transform": "quip", "rounding": "gptq"}),
]
PRUNE: list[tuple[str, dict[str, Any]]] = [
    ("magnitude", {"sparsity": 0.5}),
    ("wanda", {"sparsity": 0.5}),
    ("sparsegpt", {"sparsity": 0.5}),
    ("sparsegpt", {"sparsity": "2:4"}),
]
DEPTH: list[tuple[str, dict[str, Any]]] = [
    ("depth", {"removed": 0.25, "order": order}) for order in ("influence", "random")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a text and a calibration set, each made by its own step."""
    root = tmp_path_factory.mktemp("mamba")
    build(root / "trained")
    prepare_base({"source": "path", "path": str(root / "trained")}, root / "base")
    needs = {"calibration": 2000, "evaluation": 2000}
    prepare_text("code", root / "base", {"source": "embedded"}, needs, root / "text")
    calibrate(root / "calibration", root / "base", [root / "text"], SPEC)
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> PreTrainedModel:
    return load(folder / "base")


def altered(folder: Path, out: Path, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, "v", folder / "base", None, folder / "calibration", [], spec)
    return read_manifest(out)


def damage(base: PreTrainedModel, other: PreTrainedModel) -> float:
    """Mean KL(base ‖ other), nats per token."""
    tokens = torch.randint(500, (2, 32), generator=torch.Generator().manual_seed(0))
    return divergence(base, other, tokens)


def test_layers_whose_weight_is_read_directly_are_left_out(base: PreTrainedModel) -> None:
    mixer = type(block_of(base, 0).mixer)
    assert uncalled_linears(base) == {(mixer, "dt_proj")}
    names = list(linears_of(base))
    assert names[:3] == [f"backbone.layers.0.mixer.{name}" for name in ("in_proj", "x_proj", "out_proj")]
    assert len(names) == 12
    assert shared_inputs(base, torch.zeros(1, 8)) == {name: [name] for name in names}


def test_no_layer_of_a_transformer_is_left_out(tiny: Path) -> None:
    model = load(tiny)
    assert uncalled_linears(model) == frozenset()
    inside = [m for block in model.model.layers for m in block.modules() if isinstance(m, nn.Linear)]
    assert len(linears_of(model)) == len(inside) == 35


def test_the_calibration_is_what_the_layers_read(folder: Path, base: PreTrainedModel) -> None:
    statistics = Statistics(folder / "calibration")
    assert set(statistics.shared()) == set(linears_of(base))
    name = "backbone.layers.2.mixer.x_proj"
    seen: list[Tensor] = []
    hook = base.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        base(statistics.tokens())
    hook.remove()
    x = seen[0].flatten(0, 1)
    torch.testing.assert_close(statistics.second_moment(name), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.norms(name), x.square().mean(0).sqrt(), rtol=1e-4, atol=1e-5)
    assert len(statistics.block_influence()) == 4


@pytest.mark.parametrize(("method", "settings"), QUANTIZE + PRUNE + DEPTH)
def test_a_checkpoint_of_every_method_reads_back(
    folder: Path, base: PreTrainedModel, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    manifest = altered(folder, tmp_path / "out", method, settings)
    assert "failure" not in manifest, manifest["failure"]
    model = load(tmp_path / "out", base=folder / "base")
    verify(model, tmp_path / "out")
    found = damage(base, model)
    limits = (0, 1e-4) if settings.get("bits") == 8 else (1e-4, 2)
    assert limits[0] < found < limits[1]
    for name, parameter in model.named_parameters():
        if "dt_proj" in name or "A_log" in name:
            place = name if method != "depth" else None
            assert place is None or torch.equal(parameter, base.get_parameter(place))
    if method == "depth":
        assert manifest["layers"] == model.config.num_hidden_layers == 3
        assert [block.mixer.layer_idx for block in layer_of(model, "backbone.layers")] == [0, 1, 2]
    elif "sparsity" in settings:
        assert manifest["sparsity"] == pytest.approx(0.5, abs=0.01)
    else:
        assert manifest["layer_bits"] < settings["bits"] + 3.5


def test_the_streamed_statistics_are_those_that_were_stored(folder: Path, base: PreTrainedModel) -> None:
    from hemorrhage.calibrate.reader import Streamed

    stored = Statistics(folder / "calibration")
    streamed = Streamed(folder / "calibration", {}, load(folder / "base"), propagated=False)
    for first in streamed.shared():
        torch.testing.assert_close(streamed.second_moment(first), stored.second_moment(first), rtol=1e-4, atol=1e-5)


def test_a_packed_model_computes_as_it_is_stored(folder: Path, tmp_path: Path) -> None:
    """transformers alone can't: "'Linear' object has no attribute 'weight'"."""
    altered(folder, tmp_path / "out", "rtn", {"bits": 4, "group_size": 16})
    dense = load(tmp_path / "out", base=folder / "base")
    packed = load(tmp_path / "out", as_stored=True, base=folder / "base")
    assert not list(linears_of(packed, missing_ok=True))
    tokens = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(packed(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_head_is_read_under_the_architectures_own_name(folder: Path, base: PreTrainedModel) -> None:
    assert torch.equal(stored_head(folder / "base").weight, layer_of(base, "backbone.embeddings").weight)


def test_reference_and_evaluation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tmp_path / "tasks" / "recall" / "x"
    for module, arguments in (
        (probes, [task, "--task", "recall", "--items", "8", "--seed", "0"]),
        (
            reference_step,
            [
                *(tmp_path / "reference", "--base", folder / "base", "--texts", folder / "text"),
                *(
                    "--tasks",
                    task,
                    "--spec",
                    json.dumps(
                        {"dtype": "float32", "window": 32, "windows": 6, "diagnostics": {"windows": 2, "window": 24}}
                    ),
                ),
            ],
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["step", *map(str, arguments)])
        module.main()
    mean = {}
    for bits in (3, 8):
        checkpoint, out = tmp_path / f"rtn{bits}", tmp_path / f"evaluation{bits}"
        altered(folder, checkpoint, "rtn", {"bits": bits, "group_size": 16})
        names = (f"rtn{bits}", checkpoint, folder / "base", tmp_path / "reference", [task])
        evaluation.evaluate(out, *names)
        tokens = pd.read_parquet(out / "tokens.parquet")
        assert len(tokens) == 6 * 31
        assert len(pd.read_parquet(out / "items.parquet")) == 8
        assert tokens.kl.min() > -1e-6
        mean[bits] = tokens.kl.mean()
    assert mean[8] < 1e-3 < mean[3]
    own = tmp_path / "evaluation"
    evaluation.evaluate(own, "base", folder / "base", folder / "base", tmp_path / "reference", [task])
    tokens = pd.read_parquet(own / "tokens.parquet")
    assert tokens.kl.abs().max() < 1e-5
    assert tokens.same_top1.all()


def test_settings_are_checked_against_a_configuration_without_heads(folder: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text())
    assert input_widths(config) == {"hidden_size": 64, "intermediate_size": 128}
    bare = {"hidden_size": 64, "expand": 2}
    assert input_widths(bare) == {"hidden_size": 64, "mixer width (expand · hidden_size)": 128}
    assert rtn.Settings(bits=4, group_size=16).check(config) is None
    problem = "group_size 48 does not divide the model's hidden_size of 64"
    assert rtn.Settings(bits=4, group_size=48).check(config) == problem
