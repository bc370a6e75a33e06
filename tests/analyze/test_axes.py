"""Which variants lie on one damage curve."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import pytest
from ruamel.yaml import YAML

from hemorrhage.analyze.axes import Sweep, curve_text, sweeps
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Settings, describe
from hemorrhage.compress.methods.published import external
from hemorrhage.study import params as config
from hemorrhage.tools.params import merge
from tests.analyze.curves.test_next_points import study

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sweep", "curves"),
    [
        ({"method": "gptq", "bits": [4, 3, 2], "damp": [0.01, 0.3]}, 2),
        ({"method": "sparsegpt", "sparsity": [0.3, 0.5], "damp": [0.01, 0.3], "block_size": [64, 128]}, 4),
        ({"method": "svd", "removed": [0.1, 0.3], "damp": [0.01, 0.3]}, 2),
        ({"method": "autoround", "bits": [4, 3], "batch": [4, 8], "samples": [16, 32]}, 4),
        ({"method": "qat", "bits": [4, 3], "learning_rate": [1.0e-5, 2.0e-5], "batch": [2, 4]}, 4),
        ({"method": "recovery", "steps": [10, 50], "learning_rate": [1.0e-5, 1.0e-4], "batch": [2, 4]}, 4),
        ({"method": "depth", "removed": [0.1, 0.3], "order": "random", "seed": [0, 1, 2]}, 1),
    ],
)
def test_every_setting_but_the_severity_makes_a_curve(sweep: dict[str, Any], curves: int) -> None:
    params = config.read(ROOT / "params.yaml").model_copy(update={"compress": {"one": {"group_size": 64, **sweep}}})
    if "bits" not in sweep:
        del params.compress["one"]["group_size"]
    found = sweeps(study(params))
    assert len(found) == curves == len({curve.name for curve in found})
    for curve in found:
        seeds = len(sweep.get("seed", [0]))
        assert len(curve.variants) == seeds * len({variant.severity for variant in curve.variants})


def test_a_curve_starts_at_the_model_that_is_altered() -> None:
    params = config.read(ROOT / "params.yaml")
    content = {
        "wanda": {"method": "wanda", "sparsity": [0.3, 0.5]},
        "gptq": {"method": "gptq", "bits": [4, 3], "group_size": 64},
        "both": {"method": "gptq", "on": ["wanda-0.3", "wanda-0.5"], "bits": [4, 3], "group_size": 64},
    }
    found = sweeps(study(params.model_copy(update={"compress": content})))
    assert [(curve.sweep, curve.on) for curve in found] == [
        ("wanda", "base"),
        ("gptq", "base"),
        ("both", "wanda-0.3"),
        ("both", "wanda-0.5"),
    ]


SWEEPS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "bits": [4, 3], "group_size": 64},
    "damped": {"method": "gptq", "bits": [4, 3], "group_size": 64, "damp": [0.01, 0.3]},
    "sequential": {"method": "gptq", "bits": 4, "group_size": 32, "sequential": True},
    "wanda": {"method": "wanda", "sparsity": [0.3, 0.5, "2:4", "4:8"]},
    "pruned": {"method": "gptq", "on": ["wanda-0.3", "wanda-0.5"], "bits": [4, 3], "group_size": 64},
    "awq": {"method": "awq", "bits": [4, 3], "group_size": 64},
    "awq_shuffled": {"method": "awq", "bits": [4, 3], "group_size": 64, "shuffled": True},
    "smoothquant": {"method": "activations", "smooth": 0.5, "activations": ["token", "static"]},
    "plain": {"method": "activations", "activations": ["token"]},
    "depth": {"method": "depth", "removed": [0.1, 0.3], "order": ["influence", "random"], "seed": [0, 1]},
}
"""Sweeps that differ from each other by defaults, parents, patterns and what a method has as no value."""


FULL = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
merge(FULL, YAML(typ="safe").load((ROOT / "params/full.yaml").read_text()))


@pytest.mark.parametrize("content", [SWEEPS, {}, FULL["compress"]], ids=["made", "default", "full"])
def test_a_curve_states_all_in_which_it_differs(content: dict[str, Any]) -> None:
    params = config.read(ROOT / "params.yaml")
    if content:
        params = params.model_copy(update={"compress": content})
    curves = sweeps(study(params))
    assert len({curve.name for curve in curves}) == len({curve.key for curve in curves}) == len(curves)
    pairs = [(a, b) for a, b in itertools.permutations(curves, 2) if a.method == b.method]
    assert pairs
    for one, other in pairs:
        assert (one.curve == other.curve) == ((one.identity, one.on) == (other.identity, other.on))
        stated, (ours, theirs) = one.curve.split(", "), (settings_of(each) for each in (one, other))
        for name in type(ours).model_fields:
            if name != ours.severity_field and getattr(ours, name) != getattr(theirs, name):
                assert ours.wording(name) in stated, f"{name} is not in {one.curve!r}, as in {other.curve!r}"
        if one.on != other.on:
            assert f"on {one.on}" in stated
        if ours.severity_pattern != theirs.severity_pattern:
            assert (ours.severity_pattern or "unstructured") in stated


def settings_of(curve: Sweep) -> Settings:
    return method_of(curve.method).settings.model_validate(curve.variants[0].settings)


def test_every_curve_of_a_sweep_with_several_is_named_by_what_it_is() -> None:
    params = config.read(ROOT / "params.yaml").model_copy(update={"compress": SWEEPS})
    names: dict[str, list[str]] = {curve.sweep: [] for curve in sweeps(study(params))}
    for curve in sweeps(study(params)):
        names[curve.sweep].append(curve.name)
    assert names["wanda"] == ["wanda unstructured", "wanda n:4", "wanda n:8"]
    assert names["depth"] == ["depth influence", "depth random"]
    assert names["awq"] == ["awq"]
    assert names["damped"] == [
        "damped groups of 64, damp 0.01, not sequential, on base",
        "damped groups of 64, damp 0.3, not sequential, on base",
    ]


def test_corpora_that_differ_are_stated() -> None:
    found = study(config.read(ROOT / "params.yaml").model_copy(update={"compress": {"gptq": SWEEPS["gptq"]}}))
    one, *others = (variant for variant in found.variants.values() if variant.method == "gptq")
    one.manifest["calibration"] = {"corpora": ["prose", "code"], "tokens": 10, "experts_without_tokens": []}
    assert "calibrated" not in curve_text(one, [one, *others])
    others[0].manifest["calibration"] = {"corpora": ["code"], "tokens": 10, "experts_without_tokens": []}
    assert curve_text(one, [one, *others]).endswith("calibrated on prose, code")


def test_published_files_are_named_by_their_formats_from_the_first_on() -> None:
    found = {BASE: Variant.unaltered({"effective_bits": 16.0}, BASE, "base model")}
    for number, storage in enumerate(("GGUF", "GGUF", "AWQ")):
        manifest = {
            **describe(method_of("external"), external.Settings(files=f"/files/{number}")),
            "variant": f"published-{number}",
            "sweep": "published",
            "severity": 4.0 + number,
            "identity": json.dumps({"format": storage}),
            "curve": storage,
        }
        found[f"published-{number}"] = Variant.of_manifest(cast(CheckpointManifest, manifest), {})
    curves = sweeps(Inputs({}, found, {name: Output({}, {}) for name in found}, {}, {}, {}, {}))
    assert [(curve.name, len(curve.variants)) for curve in curves] == [("published GGUF", 2), ("published AWQ", 1)]
