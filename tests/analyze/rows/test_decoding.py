"""Rows of texts: literal references."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer

from hemorrhage.analyze import inputs
from hemorrhage.analyze.rows import decoding
from hemorrhage.analyze.spec import Spec
from hemorrhage.decode.frontier import mauve

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_rows_of_texts(decoded: inputs.Inputs) -> None:
    base = decoding.measure_texts(decoded.decodes["base"])
    output = decoded.decodes["gptq-3"]
    rows = pd.DataFrame(decoding.decoding_rows(decoded.variants["gptq-3"], output, SPEC, base))
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
    own = pd.DataFrame(decoding.decoding_rows(decoded.variants["base"], decoded.decodes["base"], SPEC, None))
    assert not own.metric.str.contains("interaction|agreement|change").any()


def test_summaries_are_scored_by_rouge() -> None:
    human = pd.DataFrame({"item": [0, 1], "text": ["The dog ran home.", "A cat sat."]})
    texts = pd.DataFrame({"item": [1, 0], "text": ["A cat sat down.", "Rain falls."]})
    rows = decoding._rouge(texts, human, "xsum", SPEC)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    by_hand = [scorer.score("A cat sat.", "A cat sat down."), scorer.score("The dog ran home.", "Rain falls.")]
    assert rows["rougeL"].estimate == pytest.approx(np.mean([one["rougeL"].fmeasure for one in by_hand]))
    assert set(rows) == set(decoding.ROUGE)
