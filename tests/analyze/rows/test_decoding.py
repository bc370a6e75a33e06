"""Texts against the base's, against people's and against rules of thumb: literal references and printed tables."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer

from hemorrhage.analyze import inputs
from hemorrhage.analyze.axes import position, sweeps
from hemorrhage.analyze.rows import decoding, stability
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import choice, published, signatures
from hemorrhage.analyze.verdicts.decoding import as_json, find
from hemorrhage.decode.frontier import mauve
from tests import synthetic
from tests.analyze.curves.made import entry, located

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_printed_tables_say_what_they_say() -> None:
    assert {len(table) for table in published.POST_TRAINED.values()} == {len(published.POST_TRAINED_STRATEGIES)}
    spreads = {
        name: [round(100 * published.spread(table[:, column]), 1) for column in (0, 1)]
        for name, table in published.POST_TRAINED.items()
    }
    fires = ["R1-Llama-8B", "R1-Qwen-7B", "R1-Qwen-14B", "Marco-o1-7B"]
    assert published.above_the_limit() == fires
    assert [spreads[name] for name in fires] == [[19.5, 15.6], [52.4, 17.6], [36.4, 17.0], [17.3, 25.6]]
    assert published.closed_cells(["FSD", "FSD-d"]) == 5
    assert published.closed_cells(["temperature"]) == 5
    assert published.closed_cells(["contrastive search"]) == 4
    assert published.greedy_is_worst() == 12
    pairs = {name: [round(100 * published.spread(one), 1) for one in both] for name, both in published.PAIRS.items()}
    assert pairs == {"Llama-2-7B": [63.2, 25.9], "CodeLlama-7B": [46.5, 17.3], "Qwen-7B": [46.5, 28.0]}
    said = published.statements()
    assert set(said) == {*signatures.RULES, "stability"}
    assert "fires for 4 of 9 post-trained models" in said["spread"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> inputs.Inputs:
    outputs = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    few = [path for path in outputs["checkpoints"] if path.parent.name in ("gptq-4", "gptq-3", "wanda-0.5")]
    return inputs.read({"base": outputs["base"], "checkpoints": few, "decodes": outputs["decodes"]})


def test_rows_of_texts(found: inputs.Inputs) -> None:
    base = decoding.measure_texts(found.decodes["base"])
    output = found.decodes["gptq-3"]
    rows = pd.DataFrame(decoding.decoding_rows(found.variants["gptq-3"], output, SPEC, base))
    rows = rows.set_index(["metric", "method"])
    generated = output.tables["generations.parquet"]

    def entropy(tokens: Sequence[int]) -> float:
        return -sum((n := list(tokens).count(t) / len(tokens)) * math.log(n) for t in set(tokens))

    for name, per_text in {"entropy": entropy, "length": len}.items():
        mine = generated[(generated.strategy == "top_p") & (generated.task == "open_ended")]
        assert rows.loc[(name, "top_p"), "estimate"] == pytest.approx(np.mean([per_text(t) for t in mine.tokens]))
    near, far = (rows.loc[("mauve", name)] for name in ("beam_4", "temperature_high"))
    features = output.features
    expected = mauve(features["prose.strategy.beam_4"], features["prose.human"], SPEC.seed)
    assert near.estimate == pytest.approx(expected)
    assert near.low <= near.estimate <= near.high
    assert far.estimate <= near.estimate + 1e-9
    assert rows.loc[("spread_cv_change", decoding.ALL_STRATEGIES), "n"] == 24
    for metric in decoding.INTERACTIONS:
        assert rows.loc[(f"{metric}_interaction", decoding.ALL_STRATEGIES), "p"] <= 1
    # Curves fall.
    shares = [rows.loc[(f"agreement{{token={n}}}", decoding.ALL_STRATEGIES), "estimate"] for n in (1, 4, 16, 32)]
    assert shares == sorted(shares, reverse=True)
    own = pd.DataFrame(decoding.decoding_rows(found.variants["base"], found.decodes["base"], SPEC, None))
    assert not own.metric.str.contains("interaction|agreement|change").any()


def test_summaries_are_scored_by_rouge() -> None:
    human = pd.DataFrame({"item": [0, 1], "text": ["The dog ran home.", "A cat sat."]})
    texts = pd.DataFrame({"item": [1, 0], "text": ["A cat sat down.", "Rain falls."]})
    rows = decoding._rouge(texts, human, "xsum", SPEC)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    by_hand = [scorer.score("A cat sat.", "A cat sat down."), scorer.score("The dog ran home.", "Rain falls.")]
    assert rows["rougeL"].estimate == pytest.approx(np.mean([one["rougeL"].fmeasure for one in by_hand]))
    assert set(rows) == set(decoding.ROUGE)


def sweep_of(right: dict[str, list[bool]], settings: dict[str, dict[str, Any]], **columns: Any) -> signatures.Texts:
    rows = [
        {
            "strategy": name,
            "settings": json.dumps(settings[name]),
            "task": "closed_ended",
            "dataset": "recall",
            "item": item,
            "accuracy": float(one),
            "rep_4": columns.get("rep_4", {}).get(name, 0.0) + 0.01 * item,
            "base_nll": columns.get("base_nll", {}).get(name, 1.0) + 0.01 * item,
        }
        for name, outcomes in right.items()
        for item, one in enumerate(outcomes)
    ]
    human = pd.DataFrame({"item": range(20), "tokens": [list(range(30))] * 20, "base_nll": 2.0})
    return signatures.Texts("v", "recall", pd.DataFrame(rows), human)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "cold": {"strategy": "temperature", "temperature": 0.3},
    "hot": {"strategy": "temperature", "temperature": 1.5},
    "fsd": {"strategy": "fsd"},
}


def test_rules_hold_fail_or_are_not_told_apart() -> None:
    right = {name: [True] * 20 for name in SETTINGS}
    texts = sweep_of(right, SETTINGS, rep_4={"greedy": 0.5, "cold": 0.4}, base_nll={"cold": 1.0, "hot": 4.0})
    assert [verdict.verdict for verdict in signatures._repetition(texts, SPEC)] == [signatures.HOLDS] * 3
    assert [verdict.verdict for verdict in signatures._incoherence(texts, None, SPEC)] == [signatures.HOLDS]
    even = sweep_of(right, SETTINGS)
    assert [verdict.verdict for verdict in signatures._incoherence(even, None, SPEC)] == [signatures.OPEN]
    assert signatures._fsd(even, SPEC).verdict == signatures.OPEN
    reverse = sweep_of(right, SETTINGS, base_nll={"cold": 4.0, "hot": 1.0})
    assert [verdict.verdict for verdict in signatures._incoherence(reverse, None, SPEC)] == [signatures.FAILS]
    one = {name: settings for name, settings in SETTINGS.items() if name != "hot"}
    lacking = sweep_of({name: right[name] for name in one}, one)
    assert next(signatures._incoherence(lacking, None, SPEC)).verdict == signatures.UNTESTED
    better = sweep_of({**right, "cold": [False] * 20, "hot": [False] * 20}, SETTINGS)
    assert signatures._fsd(better, SPEC).verdict == signatures.HOLDS


def test_the_spread_must_beat_chance_too() -> None:
    generator = np.random.default_rng(4)
    skill = {"greedy": 0.9, "cold": 0.9, "hot": 0.2, "fsd": 0.9}
    far = sweep_of({name: (generator.random(200) < p).tolist() for name, p in skill.items()}, SETTINGS)
    assert signatures._spread(far, SPEC).verdict == signatures.HOLDS
    few = sweep_of({name: (generator.random(10) < 0.4).tolist() for name in SETTINGS}, SETTINGS)
    assert signatures._spread(few, SPEC).verdict == signatures.OPEN
    alike = sweep_of({name: [True] * 19 + [False] for name in SETTINGS}, SETTINGS)
    assert signatures._spread(alike, SPEC).verdict == signatures.FAILS


def test_a_spread_over_a_single_right_answer_has_no_interval() -> None:
    lucky = {name: [name == "greedy"] + [False] * 5 for name in SETTINGS}
    verdict = signatures._spread(sweep_of(lucky, SETTINGS), SPEC)
    assert verdict.verdict == signatures.OPEN
    assert "100 % (too few right answers for an interval)" in verdict.evidence
    nothing = np.zeros((6, 4))
    right = np.array(list(lucky.values()), dtype=float).T
    assert stability.compare(nothing, right, "recall", SPEC) is None
    assert stability.compare(right, right, "recall", SPEC) is None


def test_every_rule_is_judged_on_every_decoded_variant(found: inputs.Inputs) -> None:
    verdicts = signatures.judge(found, SPEC)
    for variant, rule in itertools.product(found.decodes, signatures.RULES):
        assert any(one.variant == variant and one.rule == rule for one in verdicts)
    written = json.loads(json.dumps(as_json(find(found, [], [], SPEC)), allow_nan=False))
    assert written["stability"] is None
    assert {one["role"] for one in written["choices"]} == {"recommended", "at the knee", "past the knee"}


def test_the_variants_around_the_knee_are_named(found: inputs.Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.analyze.axes.failure", lambda *_: None)
    (curve,) = (one for one in sweeps(found) if one.name == "gptq")
    place = position(curve.variants[0])
    picked = choice.choose(found, [entry({"knee": located(place + 0.1)}, name="gptq")], [])
    assert [(one.variant, one.decoded) for one in picked] == [("", False), ("gptq-4", True), ("gptq-3", True)]
    assert choice.line(picked) == "variants: [gptq-4, gptq-3]"
    assert "has no knee" in choice.choose(found, [], [])[1].why


def test_the_other_model_of_the_family_is_no_variant(found: inputs.Inputs, tmp_path: Path) -> None:
    outputs = synthetic.write(tmp_path, windows=16, window=64)
    (base,) = (path for path in outputs["decodes"] if path.parent.name == "base")
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((base / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "variant": "sibling_model"}))
    read = inputs.read(
        {"base": outputs["base"], "sibling_models": outputs["base"], "decodes": [base, other]}, is_aligned=True
    )
    assert read.sibling is not None
    assert list(read.variants) == ["base"]
    assert list(read.decodes) == ["base"]
    compared = find(read, [], [], SPEC).stability
    assert compared is not None
    assert compared["recall"].verdict == "inconclusive"
    assert compared["recall"].items == 24
