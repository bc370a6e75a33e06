"""Studies of models that the run trains itself: each file of params/studies in small, through the real Snakemake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.project import Project, make

STUDIES = sorted(
    file.stem for file in (ROOT / "params/studies").glob("*.yaml") if "source: trained" in file.read_text("utf-8")
)


def reduced(content: dict[str, Any]) -> dict[str, Any]:
    """A study with a twentieth of the tokens, a text that is made in seconds, one seed and a variant of each sweep."""
    for recipe in content["recipes"].values():
        recipe |= {"text": "few", "tokens": recipe["tokens"] // 20}
    for model in content["models"].values():
        model["seed"] = model["seed"][0]
        if "tokens" in model:
            model["tokens"] = [tokens // 20 for tokens in model["tokens"][:2]]
    for settings in content["compress"].values():
        settings |= {key: value[:1] for key, value in settings.items() if isinstance(value, list)}
    content["calibrate"]["samples"] = 4
    content["evaluate"]["windows"] = 4
    content["analyze"]["resamples"] = 100
    return content


def reduce(file: Path) -> None:
    """Write a params.yaml in small."""
    content = reduced(yaml.safe_load(file.read_text(encoding="utf-8")))
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Project:
    """A project of its own: studies share the text and the tokenizer."""
    return make(tmp_path_factory.mktemp("nursery") / "project", tiny)


def test_every_study_of_trained_models_is_one() -> None:
    assert {"norms", "scale", "data", "architecture", "context"} <= set(STUDIES)


@pytest.mark.nursery
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_by_one_command_and_compares_its_models(nursery: Project, study: str) -> None:
    nursery.run("git", "checkout", "--quiet", "params.yaml")
    nursery.run("hemorrhage", "params", f"studies/{study}")
    reduce(nursery.root / "params.yaml")
    nursery.run("snakemake")
    asked = yaml.safe_load((nursery.root / "params.yaml").read_text(encoding="utf-8"))
    concluded = json.loads((nursery.root / "reports/study.json").read_text(encoding="utf-8"))
    assert {row["group"].split("-")[0] for row in concluded["models"]} == set(asked["models"])
    measured = {effect["outcome"]["name"].split("-")[0] for effect in concluded["effects"]}
    assert set(asked["compress"]) <= measured
    assert (nursery.root / "reports/index.html").is_file()
