"""Magnitude, Wanda and SparseGPT against their definitions, written as loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from hemorrhage.calibrate.gradients import gradients
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.unstructured_pruning import magnitude, sparsegpt, wanda
from hemorrhage.compress.solvers.sparsity import SparsitySettings, check_zeros
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import METHODS as METHODS_OF_ALL
from tests.calibration import calibrated
from tests.compress.made import layer
from tests.families import build
from tests.layers import layer_of

METHODS = ["magnitude", "wanda", "sparsegpt"]


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("prune"))


def spec(method: str, sparsity: float | str, **settings: Any) -> dict[str, Any]:
    settings = {"sparsity": sparsity, **settings}
    return {"sweep": "s", "method": method, "settings": settings, "seed": 0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, "2:4", "4:8", "1:4"])
def test_masks_are_exact_to_the_count(method: str, sparsity: float | str) -> None:
    weight, moment = layer(rows=10, columns=176)
    settings = sparsegpt.Settings(sparsity=sparsity)
    if method == "magnitude":
        gone = magnitude.mask(weight, settings)
    elif method == "wanda":
        gone = wanda.mask(weight, moment.diagonal().sqrt(), wanda.Settings(sparsity=sparsity))
    else:
        gone = sparsegpt.prune([weight], moment, settings)[0] == 0
    if settings.pattern:
        kept, among = settings.pattern
        assert (gone.unflatten(1, (-1, among)).sum(2) == among - kept).all()
        return
    for part in {"magnitude": [gone], "wanda": gone, "sparsegpt": gone.split(128, 1)}[method]:
        assert int(part.sum()) == round(settings.severity * part.numel())


@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_changes_nothing(tiny: Path, calibration: Path, method: str) -> None:
    module = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}[method]
    for nothing in (0.0, "4:4"):
        settings = module.Settings.model_construct(sparsity=nothing)
        model = load(tiny)
        module.alter(model, settings, Context(Statistics(calibration)))
        for name, linear in linears_of(load(tiny)).items():
            assert torch.equal(layer_of(model, name).weight, linear.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.1, 0.8, "2:4"])
def test_checkpoints_are_as_sparse_as_their_name(
    tiny: Path, calibration: Path, tmp_path: Path, method: str, sparsity: float | str
) -> None:
    out = tmp_path / "out"
    compress(out, "v", tiny, None, calibration, [], spec(method, sparsity))
    manifest = read_manifest(out)
    assert "failure" not in manifest
    model = load(out, base=tiny)
    verify(model, out)
    zeros = total = 0
    for linear in linears_of(model).values():
        weight = linear.weight
        if sparsity == "2:4":
            assert ((weight.view(-1, 4) == 0).sum(1) == 2).all()
        elif method == "magnitude":
            assert int((weight == 0).sum()) == round(float(sparsity) * weight.numel())
        elif method == "wanda":
            assert ((weight == 0).sum(1) == round(float(sparsity) * weight.shape[1])).all()
        else:
            for block in weight.split(128, dim=1):
                assert int((block == 0).sum()) == round(float(sparsity) * block.numel())
        zeros += int((weight == 0).sum())
        total += weight.numel()
    assert manifest["sparsity"] == pytest.approx(zeros / total)
    bits = 32 * (manifest["parameters"] - zeros) + total * (math.log2(6) / 4 if sparsity == "2:4" else 1)
    assert manifest["effective_bits"] == pytest.approx(bits / manifest["parameters"])


def test_a_mask_that_did_nothing_is_noticed(tiny: Path) -> None:
    linears = linears_of(load(tiny))
    with pytest.raises(ValueError, match=r"50 % of the weights were to become zero; 0\.00 % are"):
        check_zeros(linears, SparsitySettings(sparsity=0.5), 0.0)
    half = {}
    for name, linear in linears.items():
        with torch.no_grad():
            linear.weight[:, : linear.in_features // 2] = 0
        half[name] = linear
    with pytest.raises(ValueError, match="more than 2 of 4"):
        check_zeros(half, SparsitySettings(sparsity="2:4"), 0.0)


@pytest.mark.parametrize("wrong", [0.0, 1.0, 2, True, "4:2", "2:2", "0:4", "half", None])
def test_impossible_sparsities_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"a share between 0 and 1, or a pattern"):
        SparsitySettings.model_validate({"sparsity": wrong})


def test_settings_for_people_and_plan(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    half, pattern = wanda.Settings(sparsity=0.5), wanda.Settings(sparsity="2:4")
    assert (half.label, half.curve, half.severity) == ("50 %", "", 0.5)
    assert (pattern.label, pattern.curve, pattern.severity) == ("2:4", "n:4", 0.5)
    assert half.statistics == ("activations",)
    assert sparsegpt.Settings(sparsity=0.5).statistics == ("hessian",)
    assert wanda.Settings(sparsity=0.5, sequential=True).label == "50 %, sequential"
    assert wanda.Settings(sparsity=0.5, sequential=True).curve == "sequential"
    assert sparsegpt.Settings(sparsity="2:4", sequential=True).curve == "n:4, sequential"
    assert magnitude.Settings(sparsity=0.5).statistics == ()
    assert pattern.check(config) is None
    assert wanda.Settings(sparsity="4:8").check(config) == (
        "sparsity 4:8 does not divide the model's intermediate_size of 172"
    )


SEMI_STRUCTURED = [
    "magnitude", "wanda", "sparsegpt", "gblm", "wanda_plus", "ria", "dsnot", "admm", "gradual", "proximal"
]  # fmt: skip
"""Methods that leave 2 of 4."""

MULTIPLES = (32, 64)
"""Rows and columns of bfloat16 weights that torch's kernels take are multiples of these."""


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """A Llama in bfloat16 with layers of such sizes, its calibration, and its gradients."""
    root = tmp_path_factory.mktemp("aligned")
    base = build(root / "base", "llama", hidden_size=64, intermediate_size=128, head_dim=32)
    calibration = calibrated(base, root)
    parts = [root / "loss", root / "local"]
    for part in parts:
        gradients(part, base, calibration, {"part": part.name})
    return base, calibration, parts


def half_of_four(out: Path, aligned: tuple[Path, Path, list[Path]], method: str) -> dict[str, Tensor]:
    """The weights of a 2:4 variant as they are on disk."""
    base, calibration, parts = aligned
    compress(out, "v", base, None, calibration, parts, spec(method, "2:4"))
    assert "failure" not in read_manifest(out)
    model = load(out, "stored", base=base)
    return {name: linear.weight.detach() for name, linear in linears_of(model).items()}


def test_all_methods_with_patterns_are_tried() -> None:
    taking = []
    for name in METHODS_OF_ALL:
        settings = method_of(name).settings
        if issubclass(settings, SparsitySettings):
            try:
                settings.model_validate({**method_of(name).info.examples[0], "sparsity": "2:4"})
            except ValueError:
                continue
            taking.append(name)
    assert sorted(taking) == sorted(SEMI_STRUCTURED)


@pytest.mark.parametrize("method", SEMI_STRUCTURED)
def test_torch_stores_two_of_four_as_its_kernels_read_them(
    method: str, aligned: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    """By the conversion before CUTLASS's kernels, which a processor does, too: half of the weights, a bit for each."""
    weights = half_of_four(tmp_path / "v", aligned, method)
    assert weights
    for name, weight in weights.items():
        assert not any(size % multiple for size, multiple in zip(weight.shape, MULTIPLES, strict=True)), name
        packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
        assert (2 * packed.numel(), 8 * meta.nbytes) == (weight.numel(), weight.numel()), name
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight), name
    dense = torch.ones(32, 64, dtype=torch.bfloat16)
    assert not torch.equal(
        sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(dense)), dense
    )


@pytest.mark.gpu
@pytest.mark.parametrize("method", SEMI_STRUCTURED)
def test_torchs_kernels_compute_with_two_of_four(
    method: str, aligned: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    for name, weight in half_of_four(tmp_path / "v", aligned, method).items():
        on_gpu = weight.cuda()
        x = torch.randn(64, weight.shape[1], dtype=weight.dtype, device="cuda")
        product = torch.nn.functional.linear(x, to_sparse_semi_structured(on_gpu))
        expected = torch.nn.functional.linear(x.double(), on_gpu.double())
        assert (product - expected).abs().max() <= 0.01 * expected.abs().max(), name
