"""The analyze step on a full synthetic set of outputs: rows, metrics, curves."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from tests import synthetic

SPEC = Spec(resamples=200, confidence=0.95, seed=0, budget=synthetic.BUDGET)
TAG = "w64-s64-b0-jnn-n1008-f32"
FILES = {
    "flags.json",
    "doctor.json",
    "recommendation.json",
    "hemorrhage.parquet",
    "blocks.parquet",
    "metrics.json",
    "headline.json",
    "thresholds.json",
    "next.yaml",
    "claims.json",
    "curves.csv",
    "front.csv",
    "layers.csv",
    "thresholds.csv",
    "decoding.csv",
    "decoding.json",
    "study.json",
    "index.html",
    "provenance.json",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)


@pytest.fixture(scope="module")
def found(outputs: dict[str, Any]) -> inputs.Inputs:
    return inputs.read(outputs)


@pytest.fixture(scope="module")
def reports(found: inputs.Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reports"
    synthetic.report(out, found, SPEC)
    return out


@pytest.fixture(scope="module")
def table(reports: Path) -> pd.DataFrame:
    return pd.read_parquet(reports / "hemorrhage.parquet")


def test_everything_is_written_and_nothing_else(reports: Path) -> None:
    assert {path.name for path in reports.iterdir()} == FILES
    provenance = json.loads((reports / "provenance.json").read_text())
    assert provenance["address"] == "0123456789ab"
    assert provenance["counts"]["variants"] == 36
    assert len(provenance["inputs"]["checkpoints"]) == 36
    assert synthetic.ENVIRONMENT["id"] in provenance["environments"]


def test_rows_equal_a_plain_computation(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    directory = next(path for path in outputs["evaluations"] if path.parent.name == "rtn-3")
    tokens = pd.read_parquet(directory / "tokens.parquet").query("corpus == 'code'")
    mine = table[(table.variant == "rtn-3") & (table.dataset == "code")].set_index("metric")
    nll, base = tokens.nll.to_numpy(float), tokens.base_nll.to_numpy(float)
    assert mine.estimate[f"perplexity[{TAG}]"] == pytest.approx(math.exp(nll.mean()))
    assert mine.estimate[f"ln_perplexity_ratio[{TAG}]"] == pytest.approx(nll.mean() - base.mean())
    assert mine.estimate[f"bits_per_token[{TAG}]"] == pytest.approx(nll.mean() / math.log(2))
    assert mine.estimate[f"kl_mean[{TAG}]"] == pytest.approx(tokens.kl.to_numpy(float).mean())
    assert mine.estimate[f"kl_median[{TAG}]"] == pytest.approx(np.median(tokens.kl), rel=0.02)
    assert mine.estimate[f"same_top1[{TAG}]"] == pytest.approx(tokens.same_top1.mean())
    assert (mine.n[[f"perplexity[{TAG}]", f"kl_p99[{TAG}]"]] == 16).all()
    assert mine.protocol[f"perplexity[{TAG}]"].startswith("window=64 stride=64")
    assert (mine.environment == synthetic.ENVIRONMENT["id"]).all()
    items = pd.read_parquet(directory / "items.parquet").query("task == 'recall'")
    mine = table[(table.variant == "rtn-3") & (table.dataset == "recall")].set_index("metric")
    assert mine.estimate["accuracy"] == items.correct.mean()
    assert mine.estimate["accuracy_change"] == pytest.approx(items.correct.mean() - items.base_correct.mean())
    assert mine.estimate["flips"] == (items.correct != items.base_correct).mean()


def test_pairing_makes_the_interval_of_the_ratio_narrow(table: pd.DataFrame) -> None:
    chosen = table[(table.variant == "gptq-4") & (table.dataset == "prose")].set_index("metric")
    ratio, perplexity = chosen.loc[f"ln_perplexity_ratio[{TAG}]"], chosen.loc[f"perplexity[{TAG}]"]
    assert ratio.high - ratio.low < 0.5 * math.log(perplexity.high / perplexity.low)


def test_a_failed_variant_becomes_rows_with_its_reason(table: pd.DataFrame, reports: Path) -> None:
    failed = table[table.variant == "sparsegpt-0.7"]
    assert (failed.status == "failed").all()
    assert failed.estimate.isna().all()
    assert failed.reason.str.contains("positive definite").all()
    assert {f"perplexity[{TAG}]", "accuracy", "disk_bytes"} <= set(failed.metric)
    metrics = json.loads((reports / "metrics.json").read_text())
    assert "sparsegpt-0.7" not in metrics["variants"]
    assert metrics["counts"].items() >= {"failed": 1, "variants": 36}.items()
    assert "positive definite" in (reports / "index.html").read_text()


def test_the_base_is_undamaged(table: pd.DataFrame) -> None:
    base = table[table.variant == "base"].set_index(["metric", "dataset"])
    assert base.estimate[f"ln_perplexity_ratio[{TAG}]", "prose"] == 0
    assert base.estimate[f"same_top1[{TAG}]", "prose"] == 1
    assert base.estimate["chance", "agreement"] == 0.5


def test_the_base_is_known_without_an_evaluation_of_its_own(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    without = [path for path in outputs["evaluations"] if path.parent.name in ("gptq-4", "rtn-3")]
    results = rows.build(
        inputs.read({"base": outputs["base"], "checkpoints": outputs["checkpoints"], "evaluations": without}), SPEC
    )
    mine = results.rows[(results.rows.variant == "base") & (results.rows.dataset == "prose")].set_index("metric")
    expected = table[(table.variant == "base") & (table.dataset == "prose") & (table.family == "base")]
    assert mine.estimate.to_dict() == pytest.approx(expected.set_index("metric").estimate.to_dict())


def test_results_are_the_same_every_time(found: inputs.Inputs, reports: Path, tmp_path: Path) -> None:
    synthetic.report(tmp_path / "again", found, SPEC)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (reports / name).read_bytes()


def test_metrics_are_rounded_and_sorted(reports: Path) -> None:
    text = (reports / "metrics.json").read_text()
    metrics = json.loads(text)
    assert text == json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text):
        assert float(f"{float(number):.6g}") == float(number)
    assert set(metrics["variants"]["gptq-3"]) == {
        f"perplexity[{TAG}]",
        f"ln_perplexity_ratio[{TAG}]",
        f"kl_mean[{TAG}]",
        f"same_top1[{TAG}]",
        "mean_accuracy[agreement+cloze+recall]",
        "mean_flips[agreement+cloze+recall]",
        "effective_bits",
        "size_ratio",
        "decoding_spread[recall-i24-t8]",
    }


def test_thresholds_of_every_curve(reports: Path) -> None:
    curves = json.loads((reports / "thresholds.json").read_text())["curves"]
    by_name = {(curve["name"], curve["corpus"]): curve for curve in curves}
    rtn = by_name["rtn", "prose"]["two_fold"]
    assert by_name["rtn", "prose"]["base"] == 16.0
    assert rtn["answer"] == "found"
    assert rtn["low"] <= rtn["estimate"] <= rtn["high"] < 7
    assert rtn["between"][0] < rtn["estimate"] < rtn["between"][1]
    depth = by_name["random_depth", "prose"]["knee"]
    # The made-up damage bends at 25 %; of five points, a curve that bends gently says as much.
    assert depth["answer"] in ("too few points", "no cliff in range")
    assert depth["gain"] < 6
    assert by_name["wanda n:4", "prose"]["knee"]["answer"] == "too few points"
    assert list(by_name["sparsegpt unstructured", "code"]["missing"]) == ["sparsegpt-0.7"]


def test_what_is_proposed_next_keeps_what_was_run(reports: Path) -> None:
    found = YAML(typ="safe").load(reports / "next.yaml")["compress"]
    assert {8, 4, 3, 2} < set(found["rtn"]["bits"])
    assert "2:4" in found["wanda"]["sparsity"]


def test_plots_data(reports: Path) -> None:
    curves = pd.read_csv(reports / "curves.csv")
    assert len(curves) == 35 * 2
    assert curves.ln_perplexity_ratio.notna().all()
    assert (curves.protocol == TAG).all()
    layers = pd.read_csv(reports / "layers.csv")
    assert len(layers) == 36 * synthetic.LAYERS
    assert layers[["local_error", "relative_error", "attention_entropy"]].notna().all().all()
    front = pd.read_csv(reports / "front.csv")
    assert len(front) == 35 * 2
    assert front.groupby("corpus").on_front.sum().min() >= 3
    thresholds = pd.read_csv(reports / "thresholds.csv")
    assert {"rtn", "gptq"} <= set(thresholds.curve)
    decoding = pd.read_csv(reports / "decoding.csv")
    assert len(decoding) == 4 * 11
    assert {"accuracy", "low", "high", "distinct_2", "rep_4", "base_nll", "length"} <= set(decoding.columns)


def test_empty_and_broken_inputs(outputs: dict[str, Any], tmp_path: Path) -> None:
    base = {"base": outputs["base"]}
    synthetic.report(tmp_path / "empty", inputs.read(base), SPEC)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == FILES
    failed = [path for path in outputs["checkpoints"] if path.parent.name == "sparsegpt-0.7"]
    gone = [path for path in outputs["evaluations"] if path.parent.name == "sparsegpt-0.7"]
    found = inputs.read({**base, "checkpoints": failed, "evaluations": gone})
    synthetic.report(tmp_path / "all-failed", found, SPEC)
    assert "positive definite" in (tmp_path / "all-failed" / "index.html").read_text()
    with pytest.raises(ValueError, match="given twice"):
        inputs.read({**base, "checkpoints": [failed[0], failed[0]]})
    with pytest.raises(ValueError, match="no directory of checkpoints"):
        inputs.read({**base, "evaluations": gone})


def test_a_kind_that_nothing_reads_yet_is_given_with_its_tables(outputs: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "heads" / "gptq-4" / "0123456789ab"
    shutil.copytree(outputs["harness"][1], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "variant": "gptq-4"}))
    given = inputs.read({**outputs, "heads": [folder]})
    assert list(given.others["heads"]["gptq-4"].tables) == ["items.parquet"]
    assert given.directories["heads"] == ["gptq-4/0123456789ab"]
    assert "page" not in analyze(tmp_path / "reports", given, SPEC, "a").provenance
