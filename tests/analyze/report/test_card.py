"""Model cards: read back by the hub's own parser, with the numbers of the study that measured the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import ModelCard, ModelCardData

from hemorrhage.analyze import inputs
from hemorrhage.analyze.budget import Check
from hemorrhage.analyze.report.card import BudgetVerdict, Result, _damage, card
from hemorrhage.analyze.spec import Spec
from tests import synthetic

KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")
VARIANTS = ("base", "gptq-4", "wanda-0.5")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    everything = synthetic.write(tmp_path_factory.mktemp("study") / "data", windows=16, window=64)
    outputs = {kind: [path for path in everything[kind] if path.parent.name in VARIANTS] for kind in KINDS}
    out = tmp_path_factory.mktemp("out") / "reports"
    spec = Spec(resamples=200, confidence=0.9, seed=0, budget=synthetic.BUDGET)
    synthetic.report(out, inputs.read({"base": everything["base"], **outputs}), spec)
    return {"reports": out, **{path.parent.name: path for path in outputs["checkpoints"]}}


def data_of(text: str) -> ModelCardData:
    """Return the metadata of a card, as the hub's parser reads them."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_the_hub_reads_the_card(study: dict[str, Any]) -> None:
    data = data_of(card(study["gptq-4"], study["reports"], "my-model"))
    rows = pd.read_parquet(study["reports"] / "hemorrhage.parquet")
    measured = rows[(rows.variant == "gptq-4") & (rows.family != "decode")].set_index(["metric", "dataset"]).estimate
    assert data.library_name == "transformers"
    assert data.tags == ["compressed", "weight_quantization", "gptq"]
    assert data.model_name == "my-model"
    results = {(str(each.metric_name), each.dataset_name): each.metric_value for each in data.eval_results or []}
    assert ("mean_flips", "all tasks") in results
    assert any(metric.startswith("kl_mean[w64-") for metric, _ in results)
    for key, value in results.items():
        assert value == pytest.approx(measured[key], rel=1e-5)


def test_people_read_the_damage(study: dict[str, Any]) -> None:
    text = card(study["gptq-4"], study["reports"], "my-model")
    assert "# my-model" in text
    assert "synthetic-135m, altered: 4 bit, groups of 64." in text
    assert "| metric | on | value | 90 % interval | n |" in text
    assert "| KL to the base, nats per token | prose |" in text
    assert "inside the budget of its study" in text
    assert "0123456789ab" in text
    assert "Loads in vLLM 0.33 (CUDA" in text
    assert "- Base: synthetic-135m" in text
    assert "- Licence: that of the base" in text
    assert "```\nvllm serve my-model\n```" in text
    assert "Theoretical (masks" in card(study["wanda-0.5"], study["reports"], "pruned")


def test_a_limit_that_was_not_measured_does_not_count_against_it() -> None:
    results = [Result("kl_mean", "prose", 0.01, 0.009, 0.011, 16)]
    inside = Check("kl", "kl_mean", "prose", 0.05, "inside", "", bound=0.01)
    chance = Check("flips", "mean_flips", "all tasks", 0.05, "not measured", "the base is at chance on every task")
    outside = Check("kl", "kl_mean", "code", 0.05, "outside", "", bound=0.1)
    for checks, said in (
        ([inside], "The variant is inside the budget"),
        ([inside, chance], "It is open whether the variant is inside the budget"),
        ([inside, chance, outside], "The variant is not inside the budget"),
    ):
        text = "\n".join(_damage(results, 0.95, BudgetVerdict(len(checks) == 1, checks)))
        assert said in text
        assert ("on all tasks: not measured, the base is at chance on every task" in text) == (chance in checks)


def test_numbers_of_another_checkpoint_never_stand_in_it(study: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "checkpoints" / "gptq-4" / "ffffffffffff"
    shutil.copytree(study["gptq-4"], other)
    for reports in (study["reports"], tmp_path / "nowhere"):
        read = card(other, reports, "other")
        assert data_of(read).eval_results is None
        assert "Not measured" in read
        assert "KL to the base" not in read
