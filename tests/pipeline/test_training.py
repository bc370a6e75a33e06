"""A model that the run trains itself, through the real Snakemake: from installed packages to a base."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.plan import Plan
from tests.project import Project

pytestmark = pytest.mark.end_to_end

RECIPES = """
recipes:
  small:
    architecture:
      {model_type: llama, hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 192}
    text: few
    vocabulary: 512
    tokens: 60000
    length: 128
    batch: 8
    store: bfloat16
  tuned: {tune: {parent: small, kind: sft, examples: 64}}
"""


def test_a_tuned_model_of_a_trained_one_is_a_base(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project.root / "params.yaml"
    model, rest = file.read_text().split("\nmodel:\n", 1)[0], file.read_text().split("\ndata:\n", 1)[1]
    model = model.replace("\nrecipes: {}", RECIPES)
    file.write_text(f"{model}\nmodel: {{source: trained, recipe: tuned}}\n\ndata:\n{rest}")
    monkeypatch.chdir(project.root)
    base, training = (Path(Plan.read().manifest(*key)) for key in (("base", "base"), ("trainings", "small")))
    project.run("snakemake", str(base))
    assert "trained on" in read_manifest(base.parent)["note"]
    assert read_manifest(training.parent)["tokens"] >= 60000 - 128 * 8
    curve = pd.read_parquet(training.parent / "curve.parquet")
    assert curve["heldout_loss"].dropna().iloc[-1] < curve["heldout_loss"].dropna().iloc[0]
