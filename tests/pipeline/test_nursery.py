"""Studies of models that the run trains itself: each file of params/studies in small, through the real Snakemake.

``params/studies/quick`` makes them small; the text is that of a few packages, which is made in seconds, and so are the
seeds fewer.
"""

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
    """A quick study on a text that is made in seconds, with one seed: what a comparison needs is not what runs."""
    for recipe in content["recipes"].values():
        if "architecture" in recipe:
            recipe["text"] = "few"
    for model in content["models"].values():
        if isinstance(model.get("seed"), list):
            model["seed"] = model["seed"][0]
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


def test_every_study_of_trained_models_has_a_quick_one() -> None:
    assert {"norms", "scale", "data", "architecture", "context", "alignment", "tickets", "pruning"} == set(STUDIES)
    assert {file.stem for file in (ROOT / "params/studies/quick").glob("*.yaml")} == set(STUDIES)


@pytest.mark.nursery
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_by_one_command_and_compares_its_models(nursery: Project, study: str) -> None:
    nursery.run("git", "checkout", "--quiet", "params.yaml")
    for name in (f"studies/{study}", f"studies/quick/{study}"):
        nursery.run("hemorrhage", "params", name)
    reduce(nursery.root / "params.yaml")
    nursery.run("snakemake")
    asked = yaml.safe_load((nursery.root / "params.yaml").read_text(encoding="utf-8"))
    concluded = json.loads((nursery.root / "reports/study.json").read_text(encoding="utf-8"))
    assert {row["group"].split("-")[0] for row in concluded["models"]} == set(asked["models"])
    measured = {effect["outcome"]["name"].split("-")[0] for effect in concluded["effects"]}
    assert set(asked["compress"]) <= measured
    assert (nursery.root / "reports/index.html").is_file()


SMALL = """{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2,
     intermediate_size: 48, tie_word_embeddings: true}"""

WILD = f"""
recipes:
  tame: &tame
    architecture: {SMALL}
    text: few
    vocabulary: 512
    tokens: 20_000
    length: 64
    batch: 8
  wild:
    <<: *tame
    optimizer: {{learning_rate: 1.0e+30, clip: 1.0e+30}}
  wild_child: {{tune: {{parent: wild, kind: sft, examples: 64}}}}
models:
  tame: {{source: trained, recipe: tame, seed: [0, 1]}}
  wild: {{source: trained, recipe: wild}}
  wild_child: {{source: trained, recipe: wild_child}}
"""


@pytest.mark.nursery
@pytest.mark.timeout(1200)
def test_a_training_that_diverges_is_a_gap_and_the_others_are_compared(nursery: Project) -> None:
    nursery.run("git", "checkout", "--quiet", "params.yaml")
    nursery.run("hemorrhage", "params", "studies/tickets")
    file = nursery.root / "params.yaml"
    content = {**yaml.safe_load(file.read_text(encoding="utf-8")), **yaml.safe_load(WILD)}
    content["compress"] = {"rtn": {"method": "rtn", "bits": [3], "group_size": "channel", "symmetric": False}}
    content["evaluate"] |= {"windows": 4}
    content["calibrate"] |= {"samples": 4, "length": 64}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    done = nursery.run("snakemake", check=False)
    assert done.returncode == 1
    concluded = json.loads((nursery.root / "reports/study.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in concluded["models"]] == ["tame-0", "tame-1"]
    assert [gap["model"] for gap in concluded["gaps"]] == ["wild", "wild_child"]
    failed = nursery.run("hemorrhage", "failed", check=False)
    assert failed.returncode == 1
    assert "wild/base failed: wild: the loss of step" in failed.stderr
    assert "wild_child/base failed: wild: the loss of step" in failed.stderr
    assert nursery.jobs("snakemake", check=False).total() == 0, "what is a gap is not made again"
