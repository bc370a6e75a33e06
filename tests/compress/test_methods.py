"""Every method of the registry, through the whole compress step and back: what is written is what was meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.calibrate import gradients
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Method
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engines import STORED as STORAGES
from hemorrhage.models.engines import engine
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.study.registry import METHODS
from tests.calibration import calibrated

FITTING = {
    "group_size": 4,
    "residual": 8,
    "budget": 12.0,
    "experts": 4,
    "top_k": 2,
    "overlap": 0.4,
    "protect_first": 1,
    "protect_last": 1,
    "samples": 2,
    "batch": 2,
    "steps": 2,
    "iterations": 3,
}
"""What the settings of an example are for a model of five blocks, 64 features and 172 channels, in little time."""


def fitting(method: Method, example: Mapping[str, Any]) -> dict[str, Any]:
    """An example for the tiny model; what it leaves out or gives as a word stays as it is."""
    changed: dict[str, Any] = {
        name: value
        for name, value in FITTING.items()
        if name in method.settings.model_fields
        and not isinstance(example.get(name), str)
        and (name in example or name not in ("residual", "samples", "top_k"))
    }
    if method.settings.model_fields.get("group_size") and "group_size" not in example:
        default = method.settings.model_fields["group_size"].default
        changed["group_size"] = default if isinstance(default, str) else FITTING["group_size"]
    return {**example, **changed}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, fitting(method_of(name), example)) for name in METHODS for example in method_of(name).info.examples),
    ("rotation", {"bits": 4, "group_size": "channel", "transform": "quarot", "rounding": "gptq"}),
    ("width", {"removed": 0.3, "importance": "random", "protect_first": 0, "protect_last": 0}),
    ("depth", {"removed": 0.2, "order": "angular"}),
]
"""Every method with the settings of its examples, and some more."""

STORED = {
    "magnitude": 0.06,
    "wanda": 0.06,
    "gblm": 0.06,
    "sparsegpt": 0.6,
    "depth": 0.03,
    "llama_pro": 0.06,
    "depth_up_scaling": 0.03,
    "kv_cache": 0.03,
}
"""Method -> the most of a checkpoint's bytes that are stored: the rest is the base's."""

ON: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("gptq", {"bits": 4, "group_size": 4, "keep_zeros": True}, "wanda", {"sparsity": 0.5}),
    ("rtn", {"bits": 4, "group_size": 4, "keep_zeros": True}, "magnitude", {"sparsity": 0.5}),
    ("recovery", {"steps": 2, "batch": 2}, "depth", {"removed": 0.2, "order": "influence"}),
    ("recovery", {"steps": 2, "batch": 2}, "width", {"removed": 0.3, "protect_first": 1, "protect_last": 1}),
    ("routing", {"alteration": "top_k", "amount": 1}, "upcycling", {"noise": 0.1}),
    ("routing", {"alteration": "drop", "amount": 0.25, "choose": "usage"}, "upcycling", {"noise": 0.1}),
    ("rtn", {"bits": 4, "group_size": 4}, "upcycling", {"noise": 0.1}),
    ("kv_cache", {"bits": 4, "group_size": 8}, "rtn", {"bits": 4, "group_size": 4}),
    ("svd", {"removed": 0.2}, "depth", {"removed": 0.2, "order": "influence"}),
]
"""A method with its settings, on another."""


@pytest.fixture(scope="module")
def statistics(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The calibration of the tiny model, and its gradients."""
    folder = tmp_path_factory.mktemp("methods")
    calibration = calibrated(tiny, folder)
    parts = []
    for part in ("loss", "local"):
        parts.append(folder / part)
        gradients.gradients(parts[-1], tiny, calibration, {"part": part})
    return calibration, parts


def made(
    out: Path, base: Path, statistics: tuple[Path, list[Path]], method: str, settings: dict[str, Any], on: Path | None
) -> dict[str, Any]:
    """Run the compress step, read its checkpoint back in the ordinary way, return the manifest."""
    spec = {"sweep": method, "method": method, "settings": settings, "seed": 0}
    compress(out, method, base, on, *statistics, {**spec, "on": on and "parent"})
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    assert "failure" not in manifest, manifest["failure"]
    verify(load(out, base=base), out)
    return manifest


@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_method_through_the_step(
    tiny: Path, statistics: tuple[Path, list[Path]], tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    problem = method_of(method).settings.model_validate(settings).check(json.loads((tiny / "config.json").read_text()))
    if problem:
        assert method in {name for name, *_ in ON}, problem
        return
    manifest = made(tmp_path / "out", tiny, statistics, method, settings, None)
    assert 0 < manifest["layer_bits"] <= 33
    assert manifest["effective_bits"] > 0
    assert manifest["disk_bytes"] >= 0.9 * manifest["parameters"] * 2 / 8
    # What says where the rest is counts, too.
    assert manifest["stored_bytes"] <= STORED.get(method, 1.02) * manifest["disk_bytes"]
    engines = {engine(STORAGES[storage])[0] for storage in method_of(method).info.storage}
    assert engine(json.loads((tmp_path / "out/config.json").read_text()))[0] in engines


@pytest.mark.parametrize(("method", "settings", "before", "first"), ON)
def test_a_method_on_another(
    tiny: Path,
    statistics: tuple[Path, list[Path]],
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    before: str,
    first: dict[str, Any],
) -> None:
    parent = made(tmp_path / "parent", tiny, statistics, before, first, None)
    manifest = made(tmp_path / "out", tiny, statistics, method, settings, tmp_path / "parent")
    assert manifest["on"] == "parent"
    assert manifest["curve"].endswith("on parent")
    if settings.get("keep_zeros"):
        # Every zero is still one, more may have been rounded to it, and the mask is counted.
        assert manifest["sparsity"] >= parent["sparsity"]
        assert manifest["mask_bits"] == 1
    if method == "recovery":
        names = set(Weights(tmp_path / "out", tiny).names())
        assert names == set(Weights(tmp_path / "parent", tiny).names())
