"""Rows of the hemorrhage table against plain computations, and what must never become a number."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemorrhage.analyze import inputs, protocol
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from tests import synthetic

SPEC = Spec(resamples=200, confidence=0.95, seed=0)
TAG = "w64-s64-b0-jnn-n1008-f32"
VARIANTS = ("base", "rtn-3", "rtn-2", "wanda-0.5")


def pick(outputs: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """Some kinds of output."""
    return {kind: outputs[kind] for kind in kinds}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few of the variants."""
    everything = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    base = everything.pop("base")
    return {
        "base": base,
        **{kind: [one for one in paths if one.parent.name in VARIANTS] for kind, paths in everything.items()},
    }


@pytest.fixture(scope="module")
def table(outputs: dict[str, Any]) -> pd.DataFrame:
    kinds = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")
    return rows.build(inputs.read({kind: outputs[kind] for kind in ("base", *kinds)}), SPEC).rows


def of(outputs: dict[str, Any], kind: str, variant: str) -> Path:
    return next(path for path in outputs[kind] if path.parent.name == variant)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15 if low < 14 else confidence <= 1)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_language_rows_equal_plain_numpy(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    directory = of(outputs, "evaluations", "rtn-3")
    tokens = pd.read_parquet(directory / "tokens.parquet").query("corpus == 'code'").astype({"nll": float})
    windows = pd.read_parquet(directory / "windows.parquet").query("corpus == 'code'")
    q, p = np.exp(-tokens.nll.to_numpy()), np.exp(-tokens.base_nll.to_numpy(float))
    kl, ratio = tokens.kl.to_numpy(float), tokens.nll.to_numpy() - tokens.base_nll.to_numpy(float)
    right, confidence = tokens.right.to_numpy(float), tokens.confidence.to_numpy(float)
    before = calibration_error(tokens.base_confidence.to_numpy(float), tokens.base_right.to_numpy(float))
    expected = {
        "word_perplexity": math.exp(tokens.nll.sum() / windows.words.sum()),
        "bits_per_byte": tokens.nll.sum() / math.log(2) / windows.bytes.sum(),
        "ln_probability_correlation": np.corrcoef(np.log(q), np.log(p))[0, 1],
        "kl_max": kl.max(),
        "probability_change_mean": (q - p).mean(),
        "probability_change_rms": math.sqrt(((q - p) ** 2).mean()),
        "probability_change_p1": np.quantile(q - p, 0.01, method="inverted_cdf"),
        "probability_change_p95": np.quantile(q - p, 0.95, method="inverted_cdf"),
        "top10_overlap": tokens.top10_overlap.mean(),
        "entropy_gap": (tokens.entropy - tokens.base_entropy).mean(),
        "calibration_error": calibration_error(confidence, right),
        "calibration_error_change": calibration_error(confidence, right) - before,
        "top1_brier": ((confidence - right) ** 2).mean(),
        "kl_mean{position=1}": kl[tokens.position == 1].mean(),
        "kl_mean{position=17-32}": kl[tokens.position.between(17, 32)].mean(),
        "ln_perplexity_ratio{frequency=3-10}": ratio[tokens["count"].between(3, 10)].mean(),
        "kl_mean{frequency=>100}": kl[tokens["count"] > 100].mean(),
    }
    mine = table[(table.variant == "rtn-3") & (table.dataset == "code")].set_index("metric")
    for metric, value in expected.items():
        assert mine.estimate[f"{metric}[{TAG}]"] == pytest.approx(value, rel=1e-5, abs=1e-7), metric
        low, high = mine.loc[f"{metric}[{TAG}]", ["low", "high"]]
        assert math.isnan(low) if metric == "kl_max" else low < value < high, metric
    assert mine.p[f"kl_mean[{TAG}]"] == mine.p[f"ln_perplexity_ratio[{TAG}]"] == 1e-4
    assert mine.mde[f"ln_perplexity_ratio[{TAG}]"] > 0


def test_the_whole_protocol_is_in_the_name() -> None:
    stated = 'window=128 stride=64 windows=16/33 bos=1 join="\\n \\u00e4" predicted=2032 dtype=bfloat16'
    assert protocol.tag(stated) == "w128-s64-b1-jnsc3a4-n2032-bf16"
    assert protocol.tag(stated.replace('"\\n \\u00e4"', '""')) == "w128-s64-b1-j0-n2032-bf16"
    assert protocol.strip_protocol(protocol.add_protocol("kl_mean{position=1}", stated)) == "kl_mean{position=1}"
    with pytest.raises(ValueError, match="does not say join="):
        protocol.tag("window=128 stride=128 bos=0 predicted=9 dtype=float32")


def test_two_protocols_cannot_meet(outputs: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "evaluations" / "rtn-3" / "0123456789ab"
    shutil.copytree(of(outputs, "evaluations", "rtn-3"), other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace("window=64", "window=32"))
    base = of(outputs, "evaluations", "base")
    with pytest.raises(ValueError, match=r"prose: rtn-3 has protocol 'window=32.*but base has 'window=64"):
        inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": [base, other]})


def test_a_task_at_chance_takes_part_in_nothing(table: pd.DataFrame) -> None:
    mine = table[(table.variant == "rtn-3") & (table.family != "decode")].set_index(["metric", "dataset"])
    guessed = mine.loc["accuracy_change", "arithmetic"]
    assert guessed.status == "at chance"
    assert "the base is at chance" in guessed.reason
    assert np.isfinite(guessed.estimate)
    assert math.isnan(guessed.p)
    assert math.isnan(guessed.q)
    assert mine.loc["accuracy", "boolq"].status == "at chance", "no better than always the same answer"
    mean = mine.loc["mean_accuracy", "all tasks"]
    assert mean.protocol == "mean of agreement, cloze, recall: synthetic"
    each = [mine.estimate["accuracy", task] for task in ("agreement", "cloze", "recall")]
    assert mean.estimate == pytest.approx(np.mean(each))


def test_other_suites_are_paired_with_the_base(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    mine, base = (pd.read_parquet(of(outputs, "harness", name) / "items.parquet") for name in ("rtn-2", "base"))
    both = mine.merge(base, on=["task", "item"]).query("task == 'piqa'")
    piqa = table[(table.variant == "rtn-2") & (table.dataset == "piqa")].set_index("metric")
    assert piqa.estimate["accuracy_change"] == pytest.approx(both.correct_x.mean() - both.correct_y.mean())
    gained, lost = (both.correct_x & ~both.correct_y).sum(), (~both.correct_x & both.correct_y).sum()
    assert piqa.p["accuracy_change"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    code = table[(table.variant == "rtn-2") & (table.dataset == "humaneval")].set_index("metric")
    assert code.estimate["changed_answers"] >= code.estimate["flips"] > 0
    levels = table[(table.variant == "base") & (table.dataset == "piqa")].set_index("metric").estimate
    assert levels[["chance", "floor"]].tolist() == [0.5, 0.5]


def test_items_that_the_base_did_not_answer_fail(outputs: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "harness" / "rtn-2" / "0123456789ab"
    shutil.copytree(of(outputs, "harness", "rtn-2"), other)
    pd.read_parquet(other / "items.parquet").iloc[1:].to_parquet(other / "items.parquet")
    base, checkpoint = of(outputs, "harness", "base"), of(outputs, "checkpoints", "rtn-2")
    for given, reason in (([base, other], "not those that the base answered"), ([other], "was not measured")):
        found = rows.build(
            inputs.read({**pick(outputs, "base"), "checkpoints": [checkpoint], "harness": given}), SPEC
        ).rows
        mine = found[(found.variant == "rtn-2") & (found.metric == "accuracy")]
        assert len(mine) == 2
        assert (mine.status == "failed").all()
        assert mine.reason.str.contains(reason).all()


def test_inside_and_cost(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    directory = of(outputs, "evaluations", "wanda-0.5")
    seen = pd.read_parquet(directory / "diagnostics.parquet")
    mine = table[table.variant == "wanda-0.5"].set_index("metric")
    one = seen.query("metric == 'local_error' and layer == 3").value
    found = mine.loc["local_error{layer=3}"]
    assert (found.estimate, found.n) == (pytest.approx(one.mean()), 4)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, one.mean(), stats.sem(one)))
    head = seen.query("metric == 'attention_entropy' and layer == 2 and head == 1").value.mean()
    assert mine.estimate["attention_entropy{layer=2,head=1}"] == pytest.approx(head)
    layers = seen[seen["head"] < 0].groupby(["metric", "layer"]).value.mean()
    assert mine.estimate["local_sqnr{layers=worst}"] == pytest.approx(layers["local_sqnr"].min())
    assert mine.estimate["local_sqnr{layers=mean}"] == pytest.approx(layers["local_sqnr"].mean())
    assert mine.estimate["local_error{layers=worst}"] == pytest.approx(layers["local_error"].max())
    assert np.isfinite(mine.estimate["log_amplification"])
    cost = json.loads((directory / "cost.json").read_text())
    prefill = mine.loc["prefill_tokens_per_second"]
    expected = (np.median(cost["prefill"]), min(cost["prefill"]), max(cost["prefill"]))
    assert (prefill.estimate, prefill.low, prefill.high) == pytest.approx(expected)
    assert prefill.protocol.startswith("batch=1 length=128 new_tokens=32 threads=1 dtype=float32 peak_of=process")
    assert prefill.protocol.endswith(" theoretical: weights: a dequantized dense copy computes")
    assert mine.estimate["kv_bytes"] == mine.estimate["kv_bytes_formula"]


def test_what_an_output_lacks_has_no_rows(outputs: dict[str, Any], tmp_path: Path) -> None:
    less = []
    for path in outputs["evaluations"]:
        less.append(tmp_path / path.parent.name / path.name)
        shutil.copytree(path, less[-1], ignore=shutil.ignore_patterns("diagnostics*", "windows*", "cost*"))
    found = inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": less})
    analyze(tmp_path / "reports", found, SPEC, "a")
    metrics = set(pd.read_parquet(tmp_path / "reports" / "hemorrhage.parquet").metric)
    assert f"perplexity[{TAG}]" in metrics
    assert not any(name.startswith(("word_", "bits_per_byte", "local_", "prefill", "kv_")) for name in metrics)


def test_values_that_are_no_numbers_become_undefined_rows(outputs: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "evaluations" / "rtn-3" / "0123456789ab"
    shutil.copytree(of(outputs, "evaluations", "rtn-3"), broken)
    tokens = pd.read_parquet(broken / "tokens.parquet")
    tokens.assign(nll=np.float32(1000)).to_parquet(broken / "tokens.parquet")
    given = [of(outputs, "evaluations", "base"), broken]
    found = rows.build(inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": given}), SPEC).rows
    mine = found[(found.variant == "rtn-3") & (found.dataset == "prose")].set_index("metric")
    assert mine.status[f"perplexity[{TAG}]"] == "undefined"
    assert mine.status[f"ln_probability_correlation[{TAG}]"] == "undefined"
    assert mine.status[f"ln_perplexity_ratio[{TAG}]"] == "ok"
