"""The points to run next: params.yaml takes them as they are, whatever was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from ruamel.yaml import YAML

from hemorrhage.analyze import inputs
from hemorrhage.analyze.axes import Sweep, sweeps
from hemorrhage.analyze.curves import next_points
from hemorrhage.analyze.curves.entries import LOCATED, TOO_FEW, CurveEntry, NextPoints, Threshold
from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import describe
from hemorrhage.study import params as config
from hemorrhage.tools.params import merge
from tests.analyze.curves.made import entry, gap

ROOT = Path(__file__).parents[3]
BLOCKS = 30


def study(params: config.Params) -> Inputs:
    """The variants of a params.yaml as if all of them had been made."""
    found = {inputs.BASE: Variant.unaltered({"effective_bits": 16.0}, inputs.BASE, "base model")}
    evaluations = {}
    for name, variant in config.variants(params).items():
        settings = variant.settings
        severity = float(settings.severity)
        layers = BLOCKS
        if variant.method == "depth":
            layers = BLOCKS - int(severity * BLOCKS + 0.5)
            severity = 1 - layers / BLOCKS
        manifest = {
            **describe(method_of(variant.method), settings),
            "variant": name,
            "sweep": variant.sweep,
            "severity": severity,
            "seed": variant.seed,
            "on": variant.on,
            "curve": ", ".join(filter(None, [settings.curve, variant.on and f"on {variant.on}"])),
            "effective_bits": 3.3 + 0.8 * severity if settings.axis == "bits" else 16.0,
            "layers": layers,
        }
        found[name] = Variant.of_manifest(cast(CheckpointManifest, manifest), {})
        evaluations[name] = Output({}, {})
    return Inputs({}, found, evaluations, {}, {}, {}, {})


def propose(sweep: Sweep, **thresholds: Threshold) -> NextPoints:
    return next_points.propose(sweep, 16.0, entry(thresholds).thresholds)


def proposed(found: Inputs, **thresholds: Threshold) -> list[CurveEntry]:
    return [
        entry(thresholds, sweep=sweep.sweep, name=sweep.name, next=propose(sweep, **thresholds))
        for sweep in sweeps(found)
    ]


def curve(method: str, setting: str, values: list[Any], axis: str, positions: list[float] | None = None) -> Sweep:
    variants = []
    for place, value in enumerate(values):
        manifest: CheckpointManifest = {
            "settings": {setting: value},
            "effective_bits": positions[place] if positions else 16.0,
            "method_info": method_of(method).info.manifest(),
            "severity_field": method_of(method).settings.severity_field,
        }
        severity = float(value) if isinstance(value, (int, float)) else 0.5
        name = f"{method}-{str(value).replace(':', 'of')}"
        variants.append(Variant(name, method, "f", method, "", name, axis, severity, 0, "base", manifest))
    return Sweep(method, "", "", method, method, "f", method, axis, "base", variants, [])


@pytest.mark.parametrize("profile", [None, "params/full.yaml"])
@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"two_fold": gap(4.9, 5.7)},
        {"knee": Threshold(TOO_FEW, "more points would tell"), "two_fold": Threshold(LOCATED)},
        {"knee": gap(0.5, 0.6), "two_fold": gap(0.3, 0.5)},
    ],
)
def test_params_yaml_accepts_what_is_proposed(
    tmp_path: Path, profile: str | None, answers: dict[str, Threshold]
) -> None:
    yaml = YAML()
    content = yaml.load((ROOT / "params.yaml").read_text())
    if profile:
        merge(content, yaml.load((ROOT / profile).read_text()))
        # The mirror is not on every machine; sweeps do not depend on it.
        for section in ("data", "calibrate", "evaluate", "decode", "mitigate"):
            content[section] = yaml.load((ROOT / "params.yaml").read_text())[section]
    target = tmp_path / "params.yaml"
    yaml.dump(content, target)
    params = config.read(target)
    before, found = config.variants(params), study(params)
    text = next_points.as_yaml(proposed(found, **answers), sweeps(found))
    merge(content, yaml.load(text))
    yaml.dump(content, target)
    after = config.variants(config.read(target))
    assert set(before) < set(after)
    assert all(after[name] == variant for name, variant in before.items())


def test_a_short_curve_gets_what_a_knee_needs() -> None:
    sweep = curve("awq", "bits", [3], "bits", [6.0])
    found = propose(sweep)
    assert found == NextPoints((2, 5, 8), "a knee needs 4 points", "bits")
    sweep = curve("slicegpt", "removed", [0.25], "removed")
    found = propose(sweep)
    assert len(found.values) == 3
    assert max(found.values) <= 0.8


def test_a_gap_is_halved_until_its_values_are_used_up() -> None:
    sweep = curve("rtn", "bits", [8, 4, 2], "bits", [10.0, 6.8, 5.2])
    sweep.variants.append(curve("rtn", "bits", [6], "bits", [8.4]).variants[0])
    answers = {"two_fold": gap(5.2, 6.8)}
    assert propose(sweep, **answers).values == (3,)
    sweep.variants.append(curve("rtn", "bits", [3], "bits", [6.0]).variants[0])
    answers = {"two_fold": gap(5.2, 6.0)}
    assert propose(sweep, **answers).values == ()


def test_damage_that_never_doubles_is_followed_further() -> None:
    sweep = curve("wanda", "sparsity", [0.1, 0.2, 0.3, 0.4], "sparsity")
    assert propose(sweep).values == (0.45,)
    sweep = curve("rtn", "bits", [8, 7, 6, 5], "bits", [10.0, 9.0, 8.0, 7.0])
    assert propose(sweep).values == (4,)


def test_shares_that_round_to_the_same_blocks_are_not_run_twice() -> None:
    sweep = curve("depth", "removed", [0.1, 0.2, 0.3, 0.5], "removed")
    for variant in sweep.variants:
        variant.manifest["layers"] = 10 - round(10 * variant.severity)
    answers = {"two_fold": gap(0.1, 0.2), "knee": gap(0.3, 0.5)}
    assert propose(sweep, **answers).values == (0.4,)


@pytest.mark.parametrize(
    ("sweep", "why"),
    [
        (curve("wanda", "sparsity", ["2:4", "4:8"], "sparsity"), "no number"),
        (curve("gguf_types", "type", ["q4_k"], "bits", [6.0]), "no setting"),
        (curve("routing", "amount", [0.1], "routing"), "no setting"),
        (curve("awq", "shuffled", [True], "bits"), "a control"),
    ],
)
def test_nothing_is_proposed_that_no_setting_could_take(sweep: Sweep, why: str) -> None:
    found = propose(sweep)
    assert found.values == ()
    assert why in found.reason


def test_an_empty_proposal_is_a_patch_that_changes_nothing() -> None:
    text = next_points.as_yaml([], [])
    content: dict[str, Any] = {"compress": {"rtn": {"bits": [4]}}}
    merge(content, YAML(typ="safe").load(text))
    assert json.dumps(content) == '{"compress": {"rtn": {"bits": [4]}}}'
