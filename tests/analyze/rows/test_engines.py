"""Rows of engines against plain computations; and that nothing takes an engine's number for the bench's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.protocol import add_protocol, of_engine, strip_protocol
from hemorrhage.analyze.rows.engines import (
    ADDED,
    HIGH,
    INTERVAL,
    KERNELS,
    LOW,
    UNBOUNDED,
    WEIGHTS,
    end,
    engine_rows,
    in_engine,
)
from hemorrhage.analyze.rows.schema import ROWS, table_of
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.runtime.artifact import read_manifest
from tests.synthetic import of

SPEC = Spec(resamples=200, confidence=0.95, seed=0)

LLAMA_CPP = {"name": "llama_cpp", "title": "llama.cpp", "version": "b1"}

KINDS = ("base", "checkpoints", "evaluations", "decodes", "harness", "code_tasks")


def served(outputs: dict[str, Any], folder: Path, variant: str, more: float, **fields: object) -> Path:
    """Write what an engine did with a variant: ``more`` nats than its weights cost, on every second token."""
    tokens = pd.read_parquet(of(outputs, "evaluations", variant) / "tokens.parquet")
    added = np.where(np.arange(len(tokens)) % 2, np.float32(more), np.float32(0))
    table = tokens[["corpus", "window", "position", "base_nll"]].assign(
        nll=tokens.nll + added,
        nll_weights=tokens.nll,
        kl=tokens.kl + added,
        kl_weights=tokens.kl,
        kl_kernels=added / 2,
        same_top1=tokens.same_top1 & (added == 0),
        same_top1_weights=tokens.same_top1,
        same_top1_kernels=added == 0,
    )
    corpora = read_manifest(of(outputs, "evaluations", variant))["corpora"]
    stated = {
        corpus: {**each, "protocol": f"{each['protocol']} engine=llama_cpp-b1"} for corpus, each in corpora.items()
    }
    out = folder / f"llama_cpp.{variant}" / "a"
    out.mkdir(parents=True)
    if not fields:
        table.to_parquet(out / "tokens.parquet")
        (out / "cost.json").write_text(json.dumps({"prefill": [3.0, 1.0, 2.0], "decode": [5.0], "peak_bytes": 7}))
    manifest = {"variant": variant, "engine": LLAMA_CPP, "corpora": stated, "environment": {"id": "e"}, **fields}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_what_the_weights_cost_and_what_the_engine_adds(outputs: dict[str, Any], tmp_path: Path) -> None:
    folder = served(outputs, tmp_path, "rtn-3", 0.25)
    read = inputs.read({kind: outputs[kind] for kind in ("base", "checkpoints")} | {"served": [folder]})
    assert list(read.served) == ["llama_cpp"]
    rows = {(row.metric, row.dataset): row for row in engine_rows(read, SPEC)}
    tokens = pd.read_parquet(folder / "tokens.parquet").query("corpus == 'prose'")
    protocol = read_manifest(folder)["corpora"]["prose"]["protocol"]

    def found(metric: str, part: str = "") -> Any:
        return rows[add_protocol(of_engine(metric, "llama_cpp", part), protocol), "prose"]

    assert found("kl_mean").metric.startswith("kl_mean{engine=llama_cpp}[w")
    assert found("kl_mean").metric.endswith("-f32-llama_cpp-b1]")
    assert found("kl_mean").estimate == pytest.approx(tokens.kl.mean())
    assert found("kl_mean", WEIGHTS).estimate == pytest.approx(tokens.kl_weights.mean())
    assert found("kl_mean", KERNELS).estimate == pytest.approx(0.0625, rel=1e-2)
    assert found("same_top1", KERNELS).estimate == pytest.approx(0.5, rel=1e-2)
    whole, weights, added = (found("ln_perplexity_ratio", part).estimate for part in ("", WEIGHTS, ADDED))
    assert whole == pytest.approx(weights + added)
    assert added == pytest.approx(0.125, rel=1e-2)

    # Paired: the interval is that of the differences, and the engine adds as much to every window.
    by_window = (tokens.kl - tokens.kl_weights).groupby(tokens.window).agg(["sum", "size"])
    counts = bootstrap.draws("prose", len(by_window), 200, 0)
    means = bootstrap.means(counts, by_window["sum"].to_numpy(float), by_window["size"].to_numpy())
    row = found("kl_mean", ADDED)
    assert (row.low, row.high) == pytest.approx(bootstrap.interval(means, 0.95, len(by_window)))
    assert row.high - row.low < 0.1 * (found("kl_mean").high - found("kl_mean").low)
    assert row.p < 0.01
    assert np.isnan(found("kl_mean").p)

    speed = rows[of_engine("prefill_tokens_per_second", "llama_cpp"), ""]
    assert (speed.estimate, speed.low, speed.high) == (2, 1, 3)
    assert speed.protocol.endswith("engine=llama_cpp-b1")
    assert rows[of_engine("peak_bytes", "llama_cpp"), ""].estimate == 7


def test_an_engines_rows_are_the_metrics_own_for_who_asks_about_it(outputs: dict[str, Any], tmp_path: Path) -> None:
    folder = served(outputs, tmp_path, "rtn-3", 0.25)
    read = inputs.read({kind: outputs[kind] for kind in ("base", "checkpoints")} | {"served": [folder]})
    rows = table_of(list(engine_rows(read, SPEC)))
    found = in_engine(rows, "llama_cpp")
    assert set(found.metric.map(strip_protocol)) == {"kl_mean", "ln_perplexity_ratio", "same_top1"}
    assert found.metric.str.endswith("-llama_cpp-b1]").all()
    whole = rows[rows.metric.map(strip_protocol) == of_engine("kl_mean", "llama_cpp")]
    assert found[found.metric.str.startswith("kl_mean[")].estimate.tolist() == whole.estimate.tolist()
    assert in_engine(rows, "vllm").empty


def asked(outputs: dict[str, Any], folder: Path, **changes: object) -> dict[tuple[str, str], Any]:
    """Rows of a server, on prose by metric and part: its KL is from 0.02 below to 0.5 above that of the weights."""
    out = served(outputs, folder, "rtn-3", 0.25)
    tokens = pd.read_parquet(out / "tokens.parquet")
    ends = {"kl_low": tokens.kl_weights - 0.02, "kl_high": tokens.kl_weights + 0.5}
    ends |= {"kernels_low": tokens.kl * 0, "kernels_high": tokens.kl * 0 + 0.5}
    tokens.assign(**ends).drop(columns=["kl", "kl_kernels"]).assign(**changes).to_parquet(out / "tokens.parquet")
    read = inputs.read({kind: outputs[kind] for kind in ("base", "checkpoints")} | {"served": [out]})
    rows = list(engine_rows(read, SPEC))
    ROWS.validate(table_of(rows))
    ends_of = [end(part, which) for part in ("", ADDED, KERNELS) for which in (LOW, HIGH)]
    names = {
        of_engine(metric, "llama_cpp", part): (metric, part)
        for metric in ("kl_mean", "ln_perplexity_ratio", "same_top1")
        for part in ("", WEIGHTS, ADDED, KERNELS, *ends_of)
    }
    return {
        names[name]: row for row in rows if (name := strip_protocol(row.metric)) in names and row.dataset == "prose"
    }


def test_of_a_server_a_kl_is_two_ends_and_no_point(outputs: dict[str, Any], tmp_path: Path) -> None:
    rows = asked(outputs, tmp_path)
    weights = rows["kl_mean", WEIGHTS]
    for part, low, high in (
        ("", weights.estimate - 0.02, weights.estimate + 0.5),
        (ADDED, -0.02, 0.5),
        (KERNELS, 0, 0.5),
    ):
        whole, ends = rows["kl_mean", part], [rows["kl_mean", end(part, which)] for which in (LOW, HIGH)]
        assert np.isnan(whole.estimate)
        assert (whole.status, whole.reason) == ("undefined", INTERVAL)
        assert [each.estimate for each in ends] == pytest.approx([low, high], abs=1e-6)
        assert (whole.low, whole.high) == (ends[0].low, ends[1].high)
        assert {each.status for each in ends} == {"ok"}
    assert rows["ln_perplexity_ratio", ADDED].estimate == pytest.approx(0.125, rel=1e-2)
    assert rows["ln_perplexity_ratio", ADDED].p < 0.01
    assert rows["same_top1", KERNELS].estimate == pytest.approx(0.5, rel=1e-2)


def test_what_nothing_bounds_and_what_a_server_does_not_give_is_said(outputs: dict[str, Any], tmp_path: Path) -> None:
    first = np.arange(len(pd.read_parquet(of(outputs, "evaluations", "rtn-3") / "tokens.parquet"))) == 0
    nll = np.where(first, np.nan, 3).astype(np.float32)
    rows = asked(outputs, tmp_path, kl_high=np.float32(np.inf), nll=nll)
    assert (rows["kl_mean", HIGH].status, rows["kl_mean", HIGH].reason) == ("undefined", UNBOUNDED)
    assert np.isnan(rows["kl_mean", ""].high)
    assert rows["kl_mean", ""].low == rows["kl_mean", LOW].low
    assert rows["ln_perplexity_ratio", ""].reason.startswith("the server gives nothing of 1 of ")
    assert rows["ln_perplexity_ratio", WEIGHTS].status == "ok"


def test_a_gap_has_no_rows_and_a_failure_has_rows_that_say_why(outputs: dict[str, Any], tmp_path: Path) -> None:
    folders = [
        served(outputs, tmp_path, "rtn-3", 0, gaps={"all": "not loaded: no such type"}),
        served(outputs, tmp_path, "rtn-2", 0, failure="EngineError: 4 workers died"),
    ]
    read = inputs.read({kind: outputs[kind] for kind in ("base", "checkpoints")} | {"served": folders})
    rows = list(engine_rows(read, SPEC))
    assert {(row.variant, row.status, row.reason) for row in rows} == {
        ("rtn-2", "failed", "EngineError: 4 workers died")
    }


def test_nothing_takes_an_engines_number_for_the_benchs_own(outputs: dict[str, Any], tmp_path: Path) -> None:
    """Engines that ruin every variant change no verdict, ranking, curve, front, flag or claim."""
    spec = Spec(resamples=100, confidence=0.95, seed=0, budget={"kl": 0.5, "perplexity": 1.5})
    given = {kind: outputs[kind] for kind in KINDS}
    ruined = [served(outputs, tmp_path / "served", variant, 50.0) for variant in ("base", "rtn-3", "wanda-0.5")]
    alone = analyze(tmp_path / "alone", inputs.read(given), spec, "a")
    beside = analyze(tmp_path / "beside", inputs.read({**given, "served": ruined}), spec, "a")
    assert beside.ranking == alone.ranking
    own = (
        "recommendation.json", "thresholds.json", "next.yaml", "claims.json", "flags.json", "doctor.json",
        "curves.csv", "front.csv", "layers.csv", "thresholds.csv", "decoding.csv", "decoding.json",
    )  # fmt: skip
    for name in own:
        assert (tmp_path / "beside" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    before, after = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "beside"))
    for variant, values in before["variants"].items():
        assert after["variants"][variant] | values == after["variants"][variant]
    more = set(after["variants"]["rtn-3"]) - set(before["variants"]["rtn-3"])
    assert {name.partition("[")[0] for name in more} == {
        "kl_mean{engine=llama_cpp}",
        "kl_mean{engine=llama_cpp,part=added}",
    }
    assert after["variants"]["rtn-2"] == before["variants"]["rtn-2"]
    rows = beside.rows
    assert len(rows) - len(alone.rows) == rows.metric.str.contains("{engine=", regex=False).sum()
