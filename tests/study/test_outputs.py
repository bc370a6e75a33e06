"""Outputs of several models in one folder: those that stay, are removed, or failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.family import Family
from hemorrhage.study.outputs import advice, collect_garbage, invalidate, list_failures
from hemorrhage.study.plan import DATA


def make(family: Family, model: str, kind: str, name: str, **content: str) -> Path:
    manifest = Path(family.plans[model].manifest(kind, name))
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps(content))
    return manifest.parent


def test_outputs_of_every_model_stay(family: Family) -> None:
    kept = [make(family, model, "checkpoints", "rtn-4") for model in family.plans]
    stale = DATA / "checkpoints" / "rtn-4" / "0123456789ab"
    stale.mkdir()
    assert collect_garbage(family, ["checkpoints"]) == [stale]
    assert all(each.is_dir() for each in kept)


def test_a_variant_is_removed_of_all_models_or_of_one(family: Family) -> None:
    a, b = (make(family, model, "checkpoints", "rtn-4") for model in family.plans)
    assert invalidate(family, ["b/rtn-4"]) == [b]
    assert a.is_dir()
    assert invalidate(family, ["rtn-4"]) == [a]
    with pytest.raises(config.ConfigError, match="c is not a model of this study; models are a-0, b"):
        invalidate(family, ["c/rtn-4"])


def test_failures_name_their_model(family: Family) -> None:
    make(family, "b", "checkpoints", "rtn-4", failure="no luck")
    assert list_failures(family) == {"b/rtn-4": "no luck"}
    assert "hemorrhage invalidate b/rtn-4" in advice(family, list_failures(family))


def test_a_model_that_could_not_be_made_has_one_reason(family: Family) -> None:
    made = [
        make(family, "b", kind, name, failure="diverged", lacks_model="yes")
        for kind, name in (("base", "base"), ("texts", "prose"), ("checkpoints", "rtn-4"))
    ]
    shared = make(family, "b", "tasks", "agreement")
    assert list_failures(family) == {"b/base": "diverged"}
    assert set(invalidate(family, ["b/base"])) == set(made)
    assert not any(folder.exists() for folder in made)
    assert shared.is_dir()
